"""The arithmetic of fake-quantize with its gradient, on the CPU block by block.

What is done to a block, in steps of one multiplication or rounding each, finds it in the processor's cache; done to
a whole weight, each step would wait for memory. The bits are those of torch's kernels, which go number by number.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

# Numbers of a block, for each thread: 512 KiB of float32, of which two fit a second-level cache.
_BLOCK = 2**17


class Unscale(torch.autograd.Function):
    """Divide (B, C, H, W) by a factor a channel (C); the factor's gradient in two passes where torch takes five."""

    @staticmethod
    def forward(ctx: Any, scaled: Tensor, factor: Tensor) -> Tensor:
        unscaled = scaled / factor.view(1, -1, 1, 1)
        ctx.save_for_backward(unscaled, factor)
        return unscaled

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        unscaled, factor = ctx.saved_tensors
        passed = gradient / factor.view(1, -1, 1, 1)
        return passed, -(passed * unscaled).sum((0, 2, 3))


class FakeQuantize(torch.autograd.Function):
    """Fake-quantize of values, or of their product with a factor a channel (C), to `scale` (1 or C) times low … high.

    Straight-through estimator (Bengio et al. 2013): the gradient of 1 within the range, of 0 outside.
    """

    @staticmethod
    def forward(ctx: Any, values: Tensor, factor: Tensor | None, scale: Tensor, low: int, high: int) -> Tensor:
        reciprocal = 1 / scale
        ctx.save_for_backward(values, factor, reciprocal)
        ctx.ends = _outer_end(low, -1), _outer_end(high, 1)
        values = _dense(values)
        fake_quantized = torch.empty_like(values)
        for block, result, by, times, back in _blocks((values, fake_quantized), (factor, reciprocal, scale)):
            _levels(block, by, times, result).round_().clamp_(low, high).mul_(back)
        return fake_quantized

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        values, factor, reciprocal = ctx.saved_tensors
        values = _dense(values)
        if gradient.stride() != values.stride():
            gradient = torch.empty_like(values).copy_(gradient)
        passed, sums = torch.empty_like(values), []
        for block, incoming, result, by, times in _blocks((values, gradient, passed), (factor, reciprocal)):
            levels = _levels(block, by, times, torch.empty_like(block))
            torch.ops.aten.hardtanh_backward.grad_input(incoming, levels, *ctx.ends, grad_input=result)
            if by is not None:
                sums.append(torch.linalg.vecdot(result, block))
                result.mul_(by)
        return passed, torch.cat(sums) if sums else None, None, None, None


def _levels(block: Tensor, factor: Tensor | None, reciprocal: Tensor | float, out: Tensor) -> Tensor:
    """The values in steps of the scale; neither rounded nor clamped."""
    scaled = block if factor is None else torch.mul(block, factor, out=out)
    return torch.mul(scaled, reciprocal, out=out)


def _outer_end(bound: int, away: int) -> float:
    """The first float32 beyond what is rounded, a half to the even side, to `bound` or to the other side of it."""
    half = np.float32(bound + away / 2)
    return float(half if bound % 2 else np.nextafter(half, np.float32(away * np.inf)))


def _dense(values: Tensor) -> Tensor:
    """The values without gaps in memory, as they are where they have none."""
    if values.is_contiguous() or values.is_contiguous(memory_format=torch.channels_last):
        return values
    return values.contiguous()


def _blocks(values: Sequence[Tensor], numbers: Sequence[Tensor | None]) -> Iterator[tuple[Any, ...]]:
    """Cut dense tensors of equal layout into blocks, each with the numbers of its channels, or with those of all."""
    channels = max(len(each) for each in numbers if each is not None)
    if channels > 1:
        rows = [each.as_strided((each.numel(),), (1,)).view(channels, -1) for each in values]
        size = rows_of_block(rows[0])
        columns = (itertools.repeat(None) if each is None else each[:, None].split(size) for each in numbers)
        return zip(*(each.split(size) for each in rows), *columns, strict=False)
    same = [None if each is None else each.item() for each in numbers]
    flat = (each.as_strided((each.numel(),), (1,)).split(_BLOCK * torch.get_num_threads()) for each in values)
    return zip(*flat, *map(itertools.repeat, same), strict=False)


def rows_of_block(rows: Tensor) -> int:
    """How many rows of a matrix make a block."""
    return max(1, _BLOCK * torch.get_num_threads() // max(1, rows.shape[1]))
