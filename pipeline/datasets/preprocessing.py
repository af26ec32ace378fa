"""From an image to what a model takes, with Pillow and numpy alone.

Training, evaluation and predicting prepare images by the functions here, files and arrays alike. Whoever ships a
model ships what it needs of them as `preprocessing.json`.
"""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from pipeline.datasets.pictures import Reading, read_image, with_channels
from pipeline.host.errors import UserError

PREPROCESSING_FILE = "preprocessing.json"
# Why a model may have none.
OWN_PREPROCESSING = "what prepares the images is code of dataset.target, which does not travel with a model"
# What a model takes: normalized, or as decoders give it.
_NORMALIZED, _PICTURE = ("NCHW", "float32"), ("NHWC", "uint8")


@dataclass(frozen=True)
class Preprocessing:
    """How an image becomes a model's input, and what its outputs mean.

    Attributes:
        image_size: height and width in pixels; the shorter side is scaled to it, the middle cropped.
        channels: 1 (grey) or 3 (RGB).
        mean: subtracted from each channel, scaled to 0 … 1; by the model itself, where its input is uint8.
        std: divides each channel then; likewise.
        class_names: the classes in the order of the outputs.
        layout: of the input: images, channels, height, width (NCHW), or the channels last (NHWC).
        dtype: of the input: float32 with NCHW, uint8 with NHWC. Earlier files lack it: float32 was theirs.
        max_image_megapixels: the most that an image may have. Earlier files lack it: Pillow's own limit was theirs.
        white_level: the value that is white in grey of more than 8 bits; None: 65535, of floating-point 1.
    """

    image_size: int
    channels: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    class_names: tuple[str, ...]
    layout: str = _NORMALIZED[0]
    dtype: str = _NORMALIZED[1]
    max_image_megapixels: float = 179.0
    white_level: float | None = None

    @property
    def reading(self) -> Reading:
        """How the pixels of a file are read."""
        return Reading(self.channels, self.max_image_megapixels, self.white_level)

    def apply(self, path: Path) -> np.ndarray:
        """The image in a file as the model takes it: float32 (1, C, S, S), normalized, or uint8 (1, S, S, C).

        The orientation that EXIF tells is applied, transparency ignored, grey of more bits scaled to 8 bits.

        Raises:
            UserError: naming the file and why it cannot be read as an image.
        """
        return self.model_input(fit(read_image(path, self.reading), self.image_size))

    def model_input(self, pixels: np.ndarray) -> np.ndarray:
        """Pixels uint8 (C, S, S) as `apply` gives them, bit for bit as `loader` makes them."""
        if self._input == _PICTURE:
            return np.ascontiguousarray(pixels.transpose(1, 2, 0))[np.newaxis]
        mean, std = (np.asarray(values, np.float32).reshape(-1, 1, 1) for values in (self.mean, self.std))
        return ((pixels.astype(np.float32) / np.float32(255) - mean) / std)[np.newaxis]

    def probabilities(self, logits: np.ndarray) -> np.ndarray:
        """What such outputs (classes) say of each class: float64 (classes)."""
        odds = np.exp(logits.astype(np.float64) - logits.max())
        return odds / odds.sum()

    def example(self, count: int = 1) -> np.ndarray:
        """So many images of noise, as the model takes them."""
        shape = (count, self.channels, self.image_size, self.image_size)
        pixels = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
        return np.concatenate([self.model_input(image) for image in pixels])

    def for_pictures(self) -> Preprocessing:
        """The same for a model that normalizes by itself: what is left to do is the size."""
        layout, dtype = _PICTURE
        return dataclasses.replace(self, layout=layout, dtype=dtype)

    @property
    def _input(self) -> tuple[str, str]:
        return self.layout, self.dtype

    def write(self, folder: Path) -> Path:
        """Write `preprocessing.json` into `folder`."""
        path = folder / PREPROCESSING_FILE
        path.write_text(json.dumps(dataclasses.asdict(self), indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        return path

    @classmethod
    def read(cls, path: Path) -> Preprocessing:
        """Read what `write` wrote, or an earlier version of it.

        Raises:
            UserError: when the file is not there or says something else.
        """
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            # Earlier files have it: arrays were resized in float then, which differs by one of 255 levels at most.
            content.pop("rounds", None)
            made = cls(**content | {name: tuple(content[name]) for name in ("mean", "std", "class_names")})
            known = made._input in (_NORMALIZED, _PICTURE)
            if not known or not len(made.mean) == len(made.std) == made.channels:
                raise ValueError(
                    f"layout={made.layout}, dtype={made.dtype}, channels={made.channels}, mean={list(made.mean)}, "
                    f"std={list(made.std)}"
                )
            return made
        except OSError as error:
            raise UserError(f"{path}: cannot be read: {error.strerror}") from error
        except KeyError as error:
            raise UserError(f"{path}: is no preprocessing of this pipeline: it lacks {error}") from error
        except (ValueError, TypeError, AttributeError) as error:
            raise UserError(f"{path}: is no preprocessing of this pipeline: {error}") from error


def from_array(pixels: np.ndarray, channels: int) -> Image.Image:
    """The image in an array, uint8 (C, H, W) of 1 or 3 channels, as `read_image` gives that in a file."""
    return with_channels(Image.fromarray(pixels[0] if len(pixels) == 1 else pixels.transpose(1, 2, 0)), channels)


def fit(image: Image.Image, size: int) -> np.ndarray:
    """The middle of an image, its shorter side scaled to `size`, bilinear with antialiasing: uint8 (C, S, S)."""
    fitted = ImageOps.fit(image, (size, size), Image.Resampling.BILINEAR)
    # In the order of its axes: by another order in memory convolutions round otherwise.
    return np.ascontiguousarray(np.asarray(fitted).reshape(size, size, -1).transpose(2, 0, 1))
