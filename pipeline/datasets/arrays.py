"""Images that a data set gives as arrays: prepared as files are, by the same functions."""

from __future__ import annotations

import math
from collections.abc import Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor

from pipeline.datasets.preprocessing import fit, from_array
from pipeline.datasets.spec import Part
from pipeline.host.machine import Machine
from pipeline.settings.config import DatasetConfig

# Bytes of a part's prepared images that are kept. More come of large images: there a batch is prepared in far less
# time than a network takes for it, and all of them would take gigabytes (docs/data.md).
_KEPT = 1_000_000_000
# Images that are prepared while a measurement waits.
_SLICE = 1024


@dataclass(frozen=True)
class Arrays:
    """Images uint8 (N, C, H, W), prepared when they are first asked for, or batch by batch; `Pixels` of a part."""

    images: Tensor
    channels: int
    size: int
    _kept: list[Tensor] = field(default_factory=list, repr=False, compare=False)

    @property
    def shape(self) -> tuple[int, ...]:
        return len(self.images), self.channels, self.size, self.size

    def __getitem__(self, indices: np.ndarray) -> Arrays:
        return Arrays(self.images[indices], self.channels, self.size)

    def batches(
        self, chosen: Sequence[Tensor], device: torch.device, machine: Machine
    ) -> Generator[Tensor, None, None]:
        """For each of `chosen` (B) its images: uint8 (B, C, S, S) on `device`, prepared while nobody measures."""
        if math.prod(self.shape) <= _KEPT:
            if not self._kept:
                self._kept.append(torch.cat(list(self._slices(self.images.split(_SLICE), machine))))
            for indices in chosen:
                yield self._kept[0][indices].to(device)
        else:
            for pixels in self._slices((self.images[indices] for indices in chosen), machine):
                yield pixels.to(device)

    def _slices(self, images: Iterable[Tensor], machine: Machine) -> Iterator[Tensor]:
        for some in images:
            with machine.computing():
                pixels = self._prepare(some)
            yield pixels

    def _prepare(self, images: Tensor) -> Tensor:
        pixels = np.empty((len(images), *self.shape[1:]), np.uint8)
        for index, image in enumerate(images.numpy()):
            pixels[index] = fit(from_array(image, self.channels), self.size)
        return torch.from_numpy(pixels)


def prepared(part: Part, config: DatasetConfig) -> Part:
    """The part with the channels and the size that `config` says; as it is, where it has them."""
    channels, size = len(config.mean), config.image_size
    if tuple(part.pixels.shape[1:]) == (channels, size, size):
        return part
    assert isinstance(part.pixels, Tensor), "what is decoded file by file is prepared already"
    return replace(part, pixels=Arrays(part.pixels, channels, size))
