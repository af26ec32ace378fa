"""Pictures that are not what they seem: many bits, floating-point numbers, broken EXIF, too many pixels."""

from __future__ import annotations

import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, TiffImagePlugin, TiffTags

from pipeline.datasets.pictures import Reading, Unreadable, read_image
from pipeline.datasets.preprocessing import Preprocessing

RAMP = np.tile(np.arange(0, 256, 8, dtype=np.uint8), (32, 1))
GREY = Reading(1)


def saved(values: np.ndarray, path: Path) -> Path:
    Image.fromarray(values).save(path)
    return path


def big_endian(values: np.ndarray, path: Path) -> Path:
    """A TIFF of 16 bits, the high byte first."""
    data = values.astype(">u2").tobytes()
    tags = [(256, 4, values.shape[1]), (257, 4, values.shape[0]), (258, 3, 16), (259, 3, 1), (262, 3, 1), (273, 4, 8)]
    tags += [(277, 3, 1), (278, 4, values.shape[0]), (279, 4, len(data))]
    entries = [
        struct.pack(">HHI", tag, kind, 1) + (struct.pack(">HH", value, 0) if kind == 3 else struct.pack(">I", value))
        for tag, kind, value in tags
    ]
    end = struct.pack(">H", len(tags)) + b"".join(entries) + bytes(4)
    path.write_bytes(b"MM\0*" + struct.pack(">I", 8 + len(data)) + data + end)
    return path


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(
    ("name", "make", "white"),
    [
        ("float01.tiff", lambda path: saved(RAMP.astype(np.float32) / 255, path), None),
        ("float255.tiff", lambda path: saved(RAMP.astype(np.float32), path), 255),
        ("deep.png", lambda path: saved(RAMP.astype(np.uint16) * 257, path), None),
        ("deep.tif", lambda path: saved(RAMP.astype(np.uint16) * 257, path), None),
        ("big_endian.tif", lambda path: big_endian(RAMP.astype(np.uint16) * 257, path), None),
        ("12_of_16.tif", lambda path: saved(RAMP.astype(np.uint16) << 4, path), 4080),
        ("12_of_16.png", lambda path: saved(RAMP.astype(np.uint16) << 4, path), 4080),
        ("12_big_endian.tif", lambda path: big_endian(RAMP.astype(np.uint16) << 4, path), 4080),
        ("int32.tif", lambda path: saved(RAMP.astype(np.int32), path), 255),
    ],
)
def test_deep_picture_has_the_greys_of_8_bits_when_read_by_its_white_level(
    name: str, make: Callable[[Path], Path], white: float | None, channels: int, tmp_path: Path
) -> None:
    pixels = np.asarray(read_image(make(tmp_path / name), Reading(channels, white_level=white)))
    assert np.array_equal(pixels if channels == 1 else pixels[..., 1], RAMP)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        (RAMP.astype(np.float32), "its values are 0 to 248; allowed: 0 to 1, or dataset.white_level set to the value"),
        (RAMP.astype(np.float32) / 255 - 0.5, "its values are -0.5 to 0.472549; allowed: 0 to 1"),
        (np.where(RAMP > 9, RAMP / np.float32(255), np.float32("nan")), "no finite numbers (NaN or infinity)"),
        (np.where(RAMP > 9, RAMP / np.float32(255), np.float32("inf")), "no finite numbers (NaN or infinity)"),
        (RAMP.astype(np.int32) * 1000, "its values are 0 to 248000; allowed: 0 to 65535"),
        (RAMP.astype(np.int32) - 900, "its values are -900 to -652"),
    ],
)
def test_deep_picture_is_unreadable_and_never_black_when_its_values_are_of_no_known_range(
    values: np.ndarray, words: str, tmp_path: Path
) -> None:
    with pytest.raises(Unreadable) as refused:
        read_image(saved(values, tmp_path / "a.tiff"), GREY)
    assert words in str(refused.value)


def test_white_level_goes_with_the_model_when_it_is_exported(tmp_path: Path) -> None:
    made = Preprocessing(32, 1, (0.0,), (1.0,), ("a", "b"), max_image_megapixels=1, white_level=4080)
    shipped = Preprocessing.read(made.write(tmp_path))
    path = saved(RAMP.astype(np.uint16) << 4, tmp_path / "a.png")
    assert np.array_equal(shipped.apply(path)[0, 0], (RAMP / np.float32(255)).astype(np.float32))
    with pytest.raises(Unreadable, match=r"its 1,001 × 1,000 pixels are 1.0 megapixels; allowed: dataset.max_image"):
        shipped.apply(saved(np.zeros((1000, 1001), np.uint8), tmp_path / "large.png"))


# --- EXIF

# An orientation, then tags of kinds that their values do not fit, as cameras and editors write them.
STRANGE = [(0x9C9B, 9, 1, b"\xff" * 4), (0x0213, 5, 1, struct.pack("<I", 38)), (0x9286, 7, 2**31, b"\xff" * 4)]
NO_RESOLUTION = [(0x0128, 3, 1, struct.pack("<HH", 2, 0)), (0x011A, 5, 0, bytes(4))]
BAD_POINTER = [(0x8769, 4, 1, struct.pack("<I", 2**31)), (0x8825, 2, 9, b"\xff" * 4)]


def exif(tags: list[tuple[int, int, int, bytes]], orientation: int) -> bytes:
    every = [(0x0112, 3, 1, struct.pack("<HH", orientation, 0)), *tags]
    body = b"".join(struct.pack("<HHI", tag, kind, count) + value for tag, kind, count, value in every)
    return (
        b"Exif\0\0II*\0\x08\0\0\0"
        + struct.pack("<H", len(every))
        + body
        + bytes(4)
        + struct.pack("<iiii", -1, 0, -1, 0)
    )


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("suffix", ["jpg", "png", "webp"])
@pytest.mark.parametrize("tags", [[], STRANGE, BAD_POINTER])
def test_picture_is_upright_when_the_rest_of_its_exif_is_broken(
    tags: list[tuple[int, int, int, bytes]], suffix: str, tmp_path: Path
) -> None:
    turned = Image.fromarray(RAMP).transpose(Image.Transpose.ROTATE_90).convert("RGB")
    turned.save(tmp_path / f"a.{suffix}", exif=exif(tags, 6), quality=100)
    pixels = np.asarray(read_image(tmp_path / f"a.{suffix}", GREY)).astype(int)
    assert abs(pixels - RAMP).max() <= 3


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize(
    "block", [exif(NO_RESOLUTION, 1), exif([], 99), b"Exif\0\0", b"Exif\0\0no TIFF at all", b"Exif\0\0II*\0\xff"]
)
def test_picture_is_read_as_it_is_when_its_exif_tells_no_orientation(block: bytes, tmp_path: Path) -> None:
    Image.fromarray(RAMP).save(tmp_path / "a.jpg", exif=block, quality=100)
    assert abs(np.asarray(read_image(tmp_path / "a.jpg", GREY)).astype(int) - RAMP).max() <= 3


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("kind", [TiffTags.LONG, TiffTags.SIGNED_LONG])
@pytest.mark.parametrize("compression", [None, "tiff_lzw"])
def test_tiff_is_upright_when_its_exif_lies_beyond_its_end_or_before_its_start(
    compression: str | None, kind: int, tmp_path: Path
) -> None:
    tags = TiffImagePlugin.ImageFileDirectory_v2()
    tags[0x0112], tags[65_000] = 6, 7
    tags.tagtype[65_000] = TiffTags.LONG
    turned = Image.fromarray(RAMP).transpose(Image.Transpose.ROTATE_90)
    turned.save(tmp_path / "a.tif", compression=compression, tiffinfo=tags)
    # The tag with that number becomes the one that tells where EXIF is.
    content = (tmp_path / "a.tif").read_bytes()
    of_its_own, of_exif = struct.pack("<HHII", 65_000, 4, 1, 7), struct.pack("<HHII", 0x8769, kind, 1, 2**31)
    assert of_its_own in content
    (tmp_path / "a.tif").write_bytes(content.replace(of_its_own, of_exif))
    assert np.array_equal(np.asarray(read_image(tmp_path / "a.tif", GREY)), RAMP)


def test_truncated_jpeg_is_still_unreadable_when_its_exif_is_broken(tmp_path: Path) -> None:
    Image.fromarray(RAMP).save(tmp_path / "a.jpg", exif=exif(NO_RESOLUTION, 1))
    (tmp_path / "a.jpg").write_bytes((tmp_path / "a.jpg").read_bytes()[:-150])
    with pytest.raises(Unreadable):
        read_image(tmp_path / "a.jpg", GREY)
