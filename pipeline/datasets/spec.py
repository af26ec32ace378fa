"""The contract of a data set: what a file in this folder declares, and what the stages get."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from pipeline.datasets.own_tensors import OwnTensors
from pipeline.datasets.unmade import Unmade
from pipeline.host.machine import UNSHARED, Machine
from pipeline.settings.config import DatasetConfig

PartName = Literal["train", "test"]
# Refuses what no model can learn: the targets of a part, which one it is, the classes, and how the line begins.
Check = Callable[[Tensor, PartName, tuple[str, ...], str], None]


@dataclass(frozen=True)
class DatasetInfo:
    """What a model must know of a data set: `channels` (1 or 3), the names of its classes, and how many `outputs`.

    `outputs`: None where it has one a class. `image_size`: of a side, in pixels.
    """

    channels: int
    class_names: tuple[str, ...]
    outputs: int | None = None
    image_size: int = 32

    @property
    def num_classes(self) -> int:
        """How many outputs a model has, by the name that networks have for it."""
        return len(self.class_names) if self.outputs is None else self.outputs


@dataclass(frozen=True)
class Part:
    """Images and their labels, int64 (N); what those mean is the task's affair.

    `pixels`: in memory uint8 (N, C, H, W), or where they can be had batch by batch. Who wants images asks for
    `batches`, which are the same bit for bit wherever the pixels are. Those of a part that stages get are prepared:
    of the channels and the size that the configuration says; but float tensors of the user's own are float32, and
    taken as they are. `machine`: where they are prepared
    for that, while nobody measures.
    """

    pixels: Tensor | Unmade | OwnTensors
    labels: Tensor
    machine: Machine = UNSHARED

    def __len__(self) -> int:
        return len(self.labels)

    def select(self, indices: np.ndarray) -> Part:
        return replace(self, pixels=self.pixels[indices], labels=self.labels[indices])

    def batches(self, chosen: Sequence[Tensor], device: torch.device) -> Generator[Tensor, None, None]:
        """For each of `chosen`, int64 indices (B) on the CPU, its images, (B, C, H, W) on `device`.

        Close the iterator (`contextlib.closing`) where it may be left before its end: threads may work for it.

        Raises:
            UserError: for an image that cannot be read, or has changed since the run began.
        """
        if isinstance(self.pixels, Tensor):
            for indices in chosen:
                yield self.pixels[indices].to(device)
        else:
            yield from self.pixels.batches(chosen, device, self.machine)


@dataclass(frozen=True)
class DatasetSpec:
    """One data set.

    Attributes:
        name: what `dataset.name` says.
        class_names: the classes, cheaply, without reading the images.
        prepare: fetches or checks the files; raises UserError when they cannot be had.
        read: one part, as `Part`: arrays grey or RGB, of any height and width; files prepared. Whatever takes a while
            is done within `Machine.computing`, in slices.
        fingerprint: identifies the content of a part in artifact keys, wherever it lies; what takes long to find
            out may be remembered in the folder that it is given.
        origin: where it comes from, for the record.
        has_files: its images are files of their own, which can be streamed (`dataset.loading`) and left out
            (`dataset.unreadable`).
        look_again: forgets what was seen of the files, so that they are looked at anew.
        tensors: the (C, S, S) of float tensors that are taken as they are; None: its images are prepared.
        inspect: what is odd about the files, a line each by its name; may keep notes in the folder that it is given.
    """

    name: str
    class_names: Callable[[DatasetConfig], tuple[str, ...]]
    prepare: Callable[[DatasetConfig], None]
    read: Callable[[DatasetConfig, PartName, Machine], Part]
    fingerprint: Callable[[DatasetConfig, PartName, Path], str]
    origin: Callable[[DatasetConfig], str]
    has_files: bool = False
    look_again: Callable[[], None] = lambda: None
    tensors: Callable[[DatasetConfig], tuple[int, ...] | None] = lambda config: None
    inspect: Callable[[DatasetConfig, Path, Machine], dict[str, str]] = lambda config, seen, machine: {}
