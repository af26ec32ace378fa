"""Images that are made when they are asked for: decoded from files beyond memory, or prepared from arrays."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pipeline.datasets.decoding import quiet_pillow, worker_count
from pipeline.host.machine import Machine

# Images that are made together where all are kept: so long a measurement waits.
_SLICE = 1024


@dataclass(frozen=True)
class Unmade:
    """Images by what each is made of: by threads, a batch ahead of who takes them.

    Attributes:
        sources: (N) files, or (N, C, H, W) pixels.
        make: an image, uint8 (C, S, S), of one source.
        size: its (C, S, S).
        workers: how many threads; None: `worker_count`.
        most_kept: bytes of all images up to which they are made once, and kept.
    """

    sources: np.ndarray
    make: Callable[[Any], np.ndarray]
    size: tuple[int, int, int]
    workers: int | None
    most_kept: int = 0
    _kept: list[Tensor] = field(default_factory=list, repr=False, compare=False)

    @property
    def shape(self) -> tuple[int, ...]:
        """(N, C, S, S)."""
        return len(self.sources), *self.size

    def __getitem__(self, indices: np.ndarray) -> Unmade:
        """Those at `indices` (M), in that order, still not made."""
        return Unmade(self.sources[indices], self.make, self.size, self.workers, self.most_kept)

    def batches(
        self, chosen: Sequence[Tensor], device: torch.device, machine: Machine
    ) -> Generator[Tensor, None, None]:
        """For each of `chosen`, int64 indices (B), its images: uint8 (B, C, S, S) on `device`.

        While somebody measures, what is left of one batch is made, and no more.

        Raises:
            UserError: for an image that cannot be read or has changed.
        """
        if math.prod(self.shape) <= self.most_kept:
            if not self._kept:
                slices = torch.arange(len(self.sources)).split(_SLICE)
                self._kept.append(torch.cat(list(self._made(slices, machine))))
            yield from (self._kept[0][indices].to(device) for indices in chosen)
        else:
            yield from (pixels.to(device) for pixels in self._made(chosen, machine))

    def _made(self, chosen: Sequence[Tensor], machine: Machine) -> Generator[Tensor, None, None]:
        quiet_pillow()
        pool = ThreadPoolExecutor(worker_count(self.workers))

        def begin(indices: Tensor) -> list[Future[np.ndarray]]:
            return [pool.submit(self.make, source) for source in self.sources[indices.numpy()]]

        ahead: list[Future[np.ndarray]] = []
        try:
            for indices, following in itertools.zip_longest(chosen, chosen[1:]):
                with machine.computing():
                    pixels = np.stack([future.result() for future in ahead or begin(indices)])
                    ahead = [] if following is None else begin(following)
                yield torch.from_numpy(pixels)
        finally:
            pool.shutdown(cancel_futures=True)
