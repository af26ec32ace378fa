"""How near the limit a runtime comes: a network's arithmetic against what this machine can do at most.

The roofline model (Williams, Waterman and Patterson 2009): a program is limited by arithmetic, or by the memory that
feeds it. Both limits are measured here, by a large matrix product and a large copy, not read from a data sheet.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from pipeline.flows.contract import Flow
from pipeline.measure.measurement import threads

# Large enough that arithmetic, not memory, is the limit; so quick that one of many is undisturbed by other programs.
_SIDE = 512
_COPY_BYTES = 2**28
_SECONDS = 0.4


@dataclass(frozen=True)
class Peak:
    """What this machine does at most with so many threads: 10^9 multiply-accumulates, 10^9 bytes, a second."""

    threads: int
    fp32_gmacs: float
    int8_gmacs: float
    int8_kernel: str
    memory_gbytes: float


def count_macs(model: nn.Module, example: Tensor) -> int:
    """Multiply-accumulates of convolutions and matrix products in a forward pass of a float model on (1, C, H, W)."""
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model.eval()(example)
    return int(counter.get_total_flops()) // 2


def measure_peak(thread_count: int, flow: Flow, clock: Callable[[], float] = time.perf_counter) -> Peak:
    """Measure the limits with so many threads, each as the best of a fraction of a second.

    That of int8 is that of the flow's kernels; of one that has none, that of fp32.
    """
    macs = _SIDE**3 / 1e9
    with threads(thread_count), torch.inference_mode():
        one, other, out = (torch.randn(_SIDE, _SIDE) for _ in range(3))
        fp32 = macs / _best(lambda: torch.mm(one, other, out=out), clock)
        int8 = {name: macs / _best(call, clock) for name, call in flow.int8_products(_SIDE).items()}
        int8 = int8 or {"fp32": fp32}
        source = torch.zeros(_COPY_BYTES // 4)
        target = torch.empty_like(source)
        memory = 2 * _COPY_BYTES / 1e9 / _best(lambda: target.copy_(source), clock)  # read and written
    kernel = max(int8, key=lambda name: int8[name])
    return Peak(thread_count, fp32, int8[kernel], kernel, memory)


def _best(call: Callable[[], object], clock: Callable[[], float]) -> float:
    """The shortest time of a call in seconds."""
    call()
    times: list[float] = []
    while sum(times) < _SECONDS or len(times) < 3:
        started = clock()
        call()
        times.append(clock() - started)
    return min(times)
