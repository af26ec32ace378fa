"""Images that do not fit in memory: decoded batch by batch, by threads, one batch ahead of who takes them."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from pipeline.datasets.decoding import decode_or_refuse, quiet_pillow, reading, worker_count
from pipeline.host.machine import Machine
from pipeline.settings.config import DatasetConfig


@dataclass(frozen=True)
class Streamed:
    """The images of `files` (N, each an `ImageFile`), decoded when they are asked for; `Pixels` of a part."""

    files: np.ndarray
    config: DatasetConfig

    @property
    def shape(self) -> tuple[int, ...]:
        return len(self.files), len(self.config.mean), self.config.image_size, self.config.image_size

    def __getitem__(self, indices: np.ndarray) -> Streamed:
        return Streamed(self.files[indices], self.config)

    def batches(
        self, chosen: Sequence[Tensor], device: torch.device, machine: Machine
    ) -> Generator[Tensor, None, None]:
        """For each of `chosen` (B) its images: uint8 (B, C, S, S) on `device`.

        While somebody measures, what is left of one batch is decoded, and no more.

        Raises:
            UserError: for an image that cannot be read or has changed.
        """
        quiet_pillow()
        how, size = reading(self.config), self.config.image_size
        pool = ThreadPoolExecutor(worker_count(self.config.workers))

        def begin(indices: Tensor) -> list[Future[np.ndarray]]:
            return [pool.submit(decode_or_refuse, file, how, size) for file in self.files[indices.numpy()]]

        ahead: list[Future[np.ndarray]] = []
        try:
            for indices, following in zip(chosen, [*chosen[1:], None], strict=True):
                with machine.computing():
                    pixels = np.stack([future.result() for future in ahead or begin(indices)])
                    ahead = [] if following is None else begin(following)
                yield torch.from_numpy(pixels).to(device)
        finally:
            pool.shutdown(cancel_futures=True)
