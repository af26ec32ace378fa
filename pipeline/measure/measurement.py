"""Latency and size, measured so that two models can be compared."""

from __future__ import annotations

import io
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from pipeline.host import terminal

MEGABYTE = 1e6


@dataclass(frozen=True)
class Latency:
    """Times of one model in milliseconds, in the order they were taken."""

    samples_ms: tuple[float, ...]

    @property
    def median_ms(self) -> float:
        return self.percentile_ms(50)

    def percentile_ms(self, percent: float) -> float:
        return float(np.percentile(self.samples_ms, percent))


@contextmanager
def threads(count: int) -> Iterator[None]:
    """Give torch `count` threads within the block."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@torch.inference_mode()
def measure_latency(
    models: Mapping[str, nn.Module],
    image: Tensor,
    *,
    thread_count: int,
    warmup: int,
    repeats: int,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, Latency]:
    """Time a forward pass of each model on `image` (1, C, H, W), interleaved in one loop on the CPU.

    A machine's speed drifts; taken turn by turn, the models meet the same drift, and the ratio of their
    medians holds where their absolute times do not. The order is reversed every other round, so that no
    model always finds the cache as the same neighbour left it. `warmup` rounds are not counted.
    """
    samples: dict[str, list[float]] = {name: [] for name in models}
    for model in models.values():
        model.eval()
    rounds = warmup + repeats
    with threads(thread_count), terminal.bar("latency", rounds, unit="round") as bar:
        for index in range(rounds):
            order = list(models) if index % 2 == 0 else list(reversed(list(models)))
            for name in order:
                started = clock()
                models[name](image)
                elapsed = clock() - started
                if index >= warmup:
                    samples[name].append(1000 * elapsed)
            bar.update(1)
    return {name: Latency(tuple(taken)) for name, taken in samples.items()}


def size_mb(model: nn.Module) -> float:
    """The size of the model's serialized `state_dict` in MB (10^6 bytes)."""
    buffer = io.BytesIO()
    torch.save(model.state_dict(), buffer)
    return buffer.getbuffer().nbytes / MEGABYTE
