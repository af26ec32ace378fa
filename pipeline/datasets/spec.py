"""The contract of a data set: what a file in this folder declares, and what the stages get."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
from torch import Tensor

from pipeline.config import DatasetConfig

PartName = Literal["train", "test"]


@dataclass(frozen=True)
class DatasetInfo:
    """What a model must know of a data set: `channels` (1 or 3) and the names of its classes."""

    channels: int
    class_names: tuple[str, ...]

    @property
    def num_classes(self) -> int:
        return len(self.class_names)


@dataclass(frozen=True)
class Part:
    """Images in memory: `pixels` uint8 (N, C, H, W) as read, `labels` int64 (N)."""

    pixels: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def select(self, indices: np.ndarray) -> Part:
        return Part(self.pixels[indices], self.labels[indices])


@dataclass(frozen=True)
class DatasetSpec:
    """One data set.

    Attributes:
        name: what `dataset.name` says.
        class_names: the classes, cheaply, without reading the images.
        prepare: fetches or checks the files; raises UserError when they cannot be had.
        read: one part, as `Part` with grey or RGB pixels.
        fingerprint: identifies the content of a part in artifact keys, wherever it lies.
        origin: where it comes from, for the record.
        decodes_to_size: `read` gives images of `dataset.image_size`, resized and rounded when they were decoded.
    """

    name: str
    class_names: Callable[[DatasetConfig], tuple[str, ...]]
    prepare: Callable[[DatasetConfig], None]
    read: Callable[[DatasetConfig, PartName], Part]
    fingerprint: Callable[[DatasetConfig, PartName], str]
    origin: Callable[[DatasetConfig], str]
    decodes_to_size: bool = False
