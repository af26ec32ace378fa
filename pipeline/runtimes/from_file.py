"""From picture files to a network's outputs: the parts of that way, and the whole of it, ready to be timed."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import numpy as np
from PIL import Image

from pipeline.datasets.pictures import Reading, Unreadable, read_image
from pipeline.datasets.preprocessing import Preprocessing, fit, from_array
from pipeline.runtimes.contract import Predictor

if TYPE_CHECKING:  # a program that predicts with onnxruntime does not import torch
    from pipeline.datasets.spec import Part
    from pipeline.settings.config import DatasetConfig

# What pictures are made to that have no files: about the size of an ImageNet photograph.
_JPEG_SIZE, _JPEG_QUALITY = (500, 375), 90
Call = Callable[[], object]
Given = TypeVar("Given")
Made = TypeVar("Made")


def picture_files(config: DatasetConfig, test: Part, count: int, folder: Path) -> tuple[list[Path], str]:
    """So many picture files of the test part, and what they are in words; those that have none are written."""
    import torch

    from pipeline.datasets import catalogue
    from pipeline.datasets.decoding import reading
    from pipeline.datasets.folder import read_of

    if catalogue.find(config).has_files:
        listed = read_of(config, "test").files
        chosen = [Path(file.path) for file in listed[np.linspace(0, len(listed) - 1, count).round().astype(int)]]
        readable = [file for file in chosen if _is_readable(file, reading(config))]
        return list(itertools.islice(itertools.cycle(readable), count)), "the data set's own files"
    (pixels,) = test.batches([torch.arange(count) % len(test)], torch.device("cpu"))
    files = [folder / f"{place}.jpg" for place in range(count)]
    for one, file in zip(pixels.numpy(), files, strict=True):
        image = from_array(one, len(one)).resize(_JPEG_SIZE, Image.Resampling.BICUBIC)
        image.save(file, quality=_JPEG_QUALITY)
    width, height = _JPEG_SIZE
    return files, f"the data set's of {pixels.shape[-1]} px, as JPEGs of {width} × {height} px"


def _is_readable(file: Path, reading: Reading) -> bool:
    try:
        read_image(file, reading)
    except Unreadable:  # which dataset.unreadable=skip allows
        return False
    return True


@dataclass(frozen=True)
class FromFile:
    """The way of so many pictures at once, each prepared by one of some threads.

    Attributes:
        pool: None: in the thread that calls.
    """

    files: Sequence[Path]
    preprocessing: Preprocessing
    pool: ThreadPoolExecutor | None

    def decode(self) -> list[Image.Image]:
        return self._each(lambda file: read_image(file, self.preprocessing.reading), self.files)

    def resize(self, images: Sequence[Image.Image]) -> list[np.ndarray]:
        return self._each(lambda image: fit(image, self.preprocessing.image_size), images)

    def normalize(self, pixels: Sequence[np.ndarray]) -> np.ndarray:
        return np.concatenate([self.preprocessing.model_input(one) for one in pixels])

    def images(self) -> np.ndarray:
        """What a network takes."""
        return self.normalize(self.resize(self.decode()))

    def parts(self) -> dict[str, Call]:
        """What comes before the network, by name."""
        images = self.decode()
        pixels = self.resize(images)
        return {
            "decode": self.decode,
            "resize": lambda: self.resize(images),
            "normalize": lambda: self.normalize(pixels),
        }

    def _each(self, work: Callable[[Given], Made], given: Sequence[Given]) -> list[Made]:
        return list((map if self.pool is None else self.pool.map)(work, given))


@contextmanager
def threads_for(threads: int, pictures: int) -> Iterator[ThreadPoolExecutor | None]:
    """The threads that prepare so many pictures, where it is more than one of both."""
    if min(threads, pictures) == 1:
        yield None
        return
    with ThreadPoolExecutor(threads) as pool:
        yield pool


def folder_call(
    files: Sequence[Path], preprocessing: Preprocessing, predictors: Sequence[Predictor], batch: int
) -> Call:
    """Predict all files: each predictor has a thread of its own, and does its share from file to outputs."""
    shares = [files[start :: len(predictors)] for start in range(len(predictors))]

    def work(predictor: Predictor, share: Sequence[Path]) -> None:
        for start in range(0, len(share), batch):
            predictor(FromFile(share[start : start + batch], preprocessing, None).images())

    if len(predictors) == 1:
        return lambda: work(predictors[0], files)
    pool = ThreadPoolExecutor(len(predictors))
    return lambda: list(pool.map(work, predictors, shares))
