"""From a file to a picture of 8 bits: the one way that training, evaluation and predicting read images."""

from __future__ import annotations

import contextlib
import errno
import io
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import ExifTags, Image, UnidentifiedImageError

from pipeline.host.errors import UserError

# `read_image` has a limit of its own, which is a setting, and keeps it before anything is decoded.
Image.MAX_IMAGE_PIXELS = None

# Of opening a file, but of the machine and not of the file.
_OF_THE_MACHINE = (errno.ENOMEM, errno.EMFILE, errno.ENFILE)
_UPRIGHT_BY = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
# How the segment of a JPEG begins that is EXIF, and where it is, behind others of 64 KiB at most.
_EXIF, _EXIF_WITHIN = b"Exif\0\0", 200_000
# White where no setting says so: of whole numbers as of 16 bits, of floating-point numbers by convention.
_WHITE_OF_WHOLE, _WHITE_OF_FLOAT = 65_535.0, 1.0
# What resizing and compressing make of values that were in range.
_TOLERANCE = 1 / 255


class Unreadable(UserError):
    """A file that cannot be read as an image, by its own fault."""


@dataclass(frozen=True)
class Reading:
    """How the pixels of a file are read.

    Attributes:
        channels: 1 (grey) or 3 (RGB).
        max_megapixels: the most that an image may have.
        white_level: the value that is white in grey images of more than 8 bits; None: 65535, of floating-point 1.
        formats: the only ones that are read, as Pillow names them; None: all that it knows.
    """

    channels: int
    max_megapixels: float = 179.0
    white_level: float | None = None
    formats: tuple[str, ...] | None = None

    @property
    def knows(self) -> str:
        """Which formats are read, as the end of "no format that"."""
        return f"is read here: {', '.join(self.formats)}" if self.formats else "Pillow knows, such as PNG or JPEG"


def read_image(file: Path | io.BytesIO, reading: Reading, told: str | None = None) -> Image.Image:
    """The image in a file, or in the bytes of one: upright, 8 bits, grey (mode L) for 1 channel and RGB for 3.

    Args:
        told: what names it in errors; None: its path.

    Raises:
        Unreadable: naming the file and why it cannot be read as an image.
        UserError: when this machine has no memory or no file handle left for it.
    """
    told = told or str(file)
    try:
        with _open(file, reading) as image:
            megapixels = image.width * image.height / 1e6
            if megapixels > reading.max_megapixels:
                raise ValueError(
                    f"its {image.width:,} × {image.height:,} pixels are {megapixels:,.1f} megapixels; allowed: "
                    f"dataset.max_image_megapixels={reading.max_megapixels:g}"
                )
            return picture_of(upright(image), reading)
    except MemoryError as error:
        raise UserError(f"{told}: there is no memory left to decode it") from error
    # Pillow's readers raise almost anything on damaged bytes: OSError, ValueError, SyntaxError, struct.error, …
    except Exception as error:
        reason = " ".join(str(error).split())
        if isinstance(error, UnidentifiedImageError):
            reason = f"it is in no format that {reading.knows}" if _start(file, 1) else "it is empty"
        elif isinstance(error, OSError):
            if error.errno in _OF_THE_MACHINE:
                raise UserError(f"{told}: cannot be opened at the moment: {error.strerror}") from error
            reason = error.strerror or reason
        raise Unreadable(f"{told}: cannot be read as an image: {reason}") from error


def picture_of(image: Image.Image, reading: Reading) -> Image.Image:
    """An image that is decoded, of 8 bits: grey (mode L) for 1 channel and RGB for 3.

    Raises:
        ValueError: when it is deep and has values beyond white.
    """
    return with_channels(_to_8_bits(image, reading.white_level), reading.channels)


def with_channels(image: Image.Image, channels: int) -> Image.Image:
    """An image of 8 bits as grey (mode L) for 1 channel and RGB for 3; what is transparent is not heeded."""
    return image.convert("L" if channels == 1 else "RGB")


def is_deep(image: Image.Image) -> bool:
    """Whether it is grey of more than 8 bits, or of floating-point numbers, as a `white_level` is for."""
    return image.mode.startswith(("I", "F"))


def white_of(image: Image.Image, white_level: float | None) -> float:
    """The value that is white in a deep image."""
    return white_level or (_WHITE_OF_FLOAT if image.mode == "F" else _WHITE_OF_WHOLE)


def _open(file: Path | io.BytesIO, reading: Reading) -> Image.Image:
    """Open a file, be it a JPEG whose EXIF Pillow, looking for a resolution in it, takes for another format's bytes."""
    try:
        return Image.open(file, formats=reading.formats)
    except UnidentifiedImageError:
        start = _start(file, _EXIF_WITHIN)
        if not start.startswith(b"\xff\xd8") or _EXIF not in start:
            raise
        # Under another name it is a segment like any other, and passed.
        again = _start(file).replace(_EXIF, b"Gone\0\0", 1)
        return Image.open(io.BytesIO(again), formats=reading.formats)


def _start(file: Path | io.BytesIO, size: int = -1) -> bytes:
    """So many bytes of a file; -1: all."""
    if isinstance(file, io.BytesIO):
        return file.getvalue()[: size if size >= 0 else None]
    with file.open("rb") as stream:
        return stream.read(size)


def upright(image: Image.Image) -> Image.Image:
    """The image decoded and turned as its EXIF says; whatever else is in that, or is broken there, is passed.

    Pillow turns TIFFs by itself, and forgets their orientation then.
    """
    try:
        image.load()
    except Exception as error:
        if isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno != errno.EINVAL):
            raise
        # TIFF's EXIF is read after the pixels. Where these are there, loading again does nothing, else it fails again.
        image.load()
    method = None
    with contextlib.suppress(Exception):
        method = _UPRIGHT_BY.get(image.getexif().get(ExifTags.Base.Orientation, 1))
    return image if method is None else image.transpose(method)


def _to_8_bits(image: Image.Image, white_level: float | None) -> Image.Image:
    """Scale a deep image to 8 bits, which Pillow's own conversion would clip to white, or, of 0 to 1, to black."""
    if not is_deep(image):
        return image
    values = np.asarray(image).astype(np.float64)
    white, low, high = white_of(image, white_level), values.min(), values.max()
    if not np.isfinite(low + high):
        raise ValueError("it holds values that are no finite numbers (NaN or infinity)")
    # Values beyond a white level that somebody chose are white; beyond an assumed one, the assumption is wrong.
    if low < -_TOLERANCE * white or (white_level is None and high > (1 + _TOLERANCE) * white):
        raise ValueError(
            f"its values are {low:g} to {high:g}; allowed: 0 to {white:g}, or dataset.white_level set to the value of "
            "white, and none below 0"
        )
    return Image.fromarray((values * (255 / white)).clip(0, 255).round().astype(np.uint8))
