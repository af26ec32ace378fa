"""Float tensors that a data set of the user's own makes, taken as they are: by a DataLoader, batch by batch."""

from __future__ import annotations

import random
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pipeline.host.machine import Machine


@dataclass(frozen=True)
class OwnTensors:
    """Images by their places in the user's data set.

    Attributes:
        places: int64 (N).
        make: the image at a place, float32 (C, S, S).
        size: its (C, S, S).
        workers: how many processes make them; None: this one.
    """

    places: np.ndarray
    make: Callable[[int], Tensor]
    size: tuple[int, ...]
    workers: int | None

    @property
    def shape(self) -> tuple[int, ...]:
        """(N, C, S, S)."""
        return len(self.places), *self.size

    def __getitem__(self, indices: np.ndarray) -> OwnTensors:
        """Those at `indices` (M), in that order."""
        return replace(self, places=self.places[indices])

    def batches(
        self, chosen: Sequence[Tensor], device: torch.device, machine: Machine
    ) -> Generator[Tensor, None, None]:
        """For each of `chosen`, int64 indices (B), its images: float32 (B, C, S, S) on `device`."""
        from torch.utils.data import DataLoader

        _seed(int(torch.randint(2**31, ())))  # transforms of other libraries then draw the same in each epoch too
        places = [self.places[indices.numpy()].tolist() for indices in chosen]
        made = iter(DataLoader(_Made(self.make), batch_sampler=places, num_workers=self.workers or 0))
        for _ in chosen:
            with machine.computing():
                images = next(made)
            yield images.to(device)


class _Made(torch.utils.data.Dataset[Tensor]):
    def __init__(self, make: Callable[[int], Tensor]) -> None:
        self._make = make

    def __getitem__(self, place: int) -> Tensor:
        return self._make(place)


def _seed(seed: int) -> None:
    random.seed(seed)
    np.random.seed(seed)


@contextmanager
def seeded() -> Iterator[None]:
    """Let random transforms draw the same within each such block; the generators are as before behind it."""
    ours: Any = random.getstate()
    numpys = np.random.get_state()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        _seed(0)
        try:
            yield
        finally:
            random.setstate(ours)
            np.random.set_state(numpys)
