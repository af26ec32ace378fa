"""The arithmetic of fake-quantize with its gradient, on the CPU block by block.

What is done to a block, in steps of one multiplication or rounding each, finds it in the processor's cache; done to
a whole weight, each step would wait for memory. The bits are those of torch's kernels, which go number by number.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
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
        ctx.bounds = low, high
        values = _dense(values)
        fake_quantized = torch.empty_like(values)
        for block, result, by, times, back in _blocks((values, fake_quantized), (factor, reciprocal, scale)):
            _levels(block, by, times, result).round_().clamp_(low, high).mul_(back)
        return fake_quantized

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        (values, factor, reciprocal), (low, high) = ctx.saved_tensors, ctx.bounds
        values = _dense(values)
        if gradient.stride() != values.stride():
            gradient = torch.empty_like(values).copy_(gradient)
        passed, sums = torch.empty_like(values), []
        if factor is None and len(reciprocal) == 1:
            ends = _outer_ends(low, high, reciprocal.item())
            for block, incoming, result in _blocks((values, gradient, passed), ()):
                _pass_between(ends, incoming, block, result)
            return passed, None, None, None, None
        ends = _outer_ends(low, high, 1.0)
        for block, incoming, result, by, times in _blocks((values, gradient, passed), (factor, reciprocal)):
            _pass_between(ends, incoming, _levels(block, by, times, torch.empty_like(block)), result)
            if by is not None:
                sums.append(torch.linalg.vecdot(result, block))
                result.mul_(by)
        return passed, torch.cat(sums) if sums else None, None, None, None


def _levels(block: Tensor, factor: Tensor | None, reciprocal: Tensor | float, out: Tensor) -> Tensor:
    """The values in steps of the scale; neither rounded nor clamped."""
    scaled = block if factor is None else torch.mul(block, factor, out=out)
    return torch.mul(scaled, reciprocal, out=out)


def _pass_between(ends: tuple[float, float], gradient: Tensor, values: Tensor, out: Tensor) -> None:
    """The gradient where the values lie between the ends, which are out, and 0 elsewhere."""
    torch.ops.aten.hardtanh_backward.grad_input(gradient, values, *ends, grad_input=out)


def _outer_ends(low: int, high: int, reciprocal: float) -> tuple[float, float]:
    """The nearest float32 below and above those that, times `reciprocal`, are rounded to a level of low … high."""
    times = np.float32(reciprocal)
    if not np.isfinite(times):  # of a diverged training, whose loss is about to say so
        return -np.inf, np.inf

    def nearest_outside(bound: float, away: float, is_outside: Callable[[Any], Any]) -> float:
        number = np.float32(bound) / times
        while is_outside(number):
            number = np.nextafter(number, np.float32(-away))
        while not is_outside(number):
            number = np.nextafter(number, np.float32(away))
        return float(number)

    return (
        nearest_outside(low - 0.5, -np.inf, lambda number: np.rint(number * times) < low),
        nearest_outside(high + 0.5, np.inf, lambda number: np.rint(number * times) > high),
    )


def _dense(values: Tensor) -> Tensor:
    """The values without gaps in memory, as they are where they have none."""
    if values.is_contiguous() or values.is_contiguous(memory_format=torch.channels_last):
        return values
    return values.contiguous()


def _blocks(values: Sequence[Tensor], numbers: Sequence[Tensor | None]) -> Iterator[tuple[Any, ...]]:
    """Cut dense tensors of equal layout into blocks, each with the numbers of its channels, or with those of all."""
    channels = max((len(each) for each in numbers if each is not None), default=1)
    if channels > 1:
        rows = [each.as_strided((each.numel(),), (1,)).view(channels, -1) for each in values]
        size = rows_of_block(rows[0])
        columns = (itertools.repeat(None) if each is None else each[:, None].split(size) for each in numbers)
        return zip(*(each.split(size) for each in rows), *columns, strict=False)
    same = [None if each is None else each.item() for each in numbers]
    size = _BLOCK * torch.get_num_threads()
    if values[0].numel() <= size:
        return iter([(*values, *same)])
    flat = (each.as_strided((each.numel(),), (1,)).split(size) for each in values)
    return zip(*flat, *(itertools.repeat(each) for each in same), strict=False)


def rows_of_block(rows: Tensor) -> int:
    """How many rows of a matrix make a block."""
    return max(1, _BLOCK * torch.get_num_threads() // max(1, rows.shape[1]))


class TracedFakeQuantize(torch.autograd.Function):
    """The same in whole tensors, for a compiler to fuse."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, reciprocal: Tensor, scale: Tensor, low: Tensor, high: Tensor) -> Tensor:
        levels = (values * reciprocal).round()
        clamped = levels.clamp(low, high)
        ctx.save_for_backward(clamped == levels)
        return clamped * scale

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        (within,) = ctx.saved_tensors
        return torch.where(within, gradient, 0.0), None, None, None, None
