"""Fake-quantize on the CPU at the speed of memory, to the same bits as torch's own.

torch's CPU kernels take 4 to 16 ns an element, one by one (a per-channel weight the most), which makes
a QAT step of a small network twice as long as a float step. Here the same arithmetic is done by whole
tensors: multiply by the reciprocal scale, round half to even, clamp, scale back. Observers are torch's:
a minimum and a maximum are all that a moving average takes from a tensor, so they see these alone.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.ao.quantization import FusedMovingAvgObsFakeQuantize


def vectorize(prepared: nn.Module) -> None:
    """Let the fake-quantize modules of a prepared model compute vectorized; state and results stay the same."""
    for module in prepared.modules():
        if type(module) is FusedMovingAvgObsFakeQuantize:
            # The module as it is, buffers and all, with another forward: nothing is copied that could differ.
            module.__class__ = VectorizedFakeQuantize


def size_ranges(prepared: nn.Module) -> None:
    """Give per-channel ranges that have seen nothing yet the length that torch gives them on first sight.

    A compiled model cannot: its graph is made for tensors of one shape.
    """
    for module in prepared.modules():
        fake_quantize = getattr(module, "weight_fake_quant", None)
        if isinstance(fake_quantize, VectorizedFakeQuantize) and fake_quantize.is_per_channel:
            observer, weight = fake_quantize.activation_post_process, module.weight
            assert isinstance(weight, Tensor)
            channels = len(weight)
            if observer.min_val.numel() == 0:
                observer.min_val.resize_(channels).fill_(math.inf)
                observer.max_val.resize_(channels).fill_(-math.inf)
                fake_quantize.scale.resize_(channels).fill_(1)
                fake_quantize.zero_point.resize_(channels).zero_()


class VectorizedFakeQuantize(FusedMovingAvgObsFakeQuantize):
    """torch's fused observer and fake-quantize; on a GPU, where the kernels are fast, just that."""

    def forward(self, X: Tensor) -> Tensor:
        if X.device.type != "cpu" or X.dtype != torch.float32 or self.ch_axis not in (-1, 0):
            return super().forward(X)
        if torch.compiler.is_compiling():  # no look at a value: the compiler fuses all of it
            self._update(self._extremes(X.detach()))
            low, high = self._bounds(self._along_channels(self.zero_point, X))
            return torch.where(self.fake_quant_enabled == 1, self._fake_quantize(X, low, high), X)
        observes = self.observer_enabled[0] == 1
        self._update(self._extremes(X.detach()) if observes else X.new_zeros(len(X), 2))
        if self.fake_quant_enabled[0] == 0:
            return X
        # A channel whose weights have all one sign gets a zero point of its own from torch's observer.
        if (self.zero_point == self.zero_point[0]).all():
            low, high = self._bounds(int(self.zero_point[0]))  # numbers: clamp is several times as fast with them
        else:
            low, high = self._bounds(self._along_channels(self.zero_point, X))
        return self._fake_quantize(X, low, high)

    def _fake_quantize(self, values: Tensor, low: Tensor | int, high: Tensor | int) -> Tensor:
        scale = self._along_channels(self.scale, values)
        fake_quantized: Tensor = _FakeQuantize.apply(values, 1 / scale, scale, low, high)
        return fake_quantized

    def _extremes(self, values: Tensor) -> Tensor:
        """Minimum and maximum: of each channel (C, 2), or of all values (2)."""
        if self.is_per_channel:
            rows = values.flatten(1)
            return torch.stack((rows.amin(1), rows.amax(1)), dim=1)
        return torch.stack(torch.aminmax(values))

    def _update(self, extremes: Tensor) -> None:
        """Move the ranges where the observer is on; take scale and zero point from them where fake-quantize is."""
        observer = self.activation_post_process
        torch.fused_moving_avg_obs_fake_quant(
            extremes,
            self.observer_enabled,
            self.fake_quant_enabled,
            observer.min_val,
            observer.max_val,
            self.scale,
            self.zero_point,
            observer.averaging_constant,
            observer.quant_min,
            observer.quant_max,
            self.ch_axis,
            self.is_per_channel,
            self.is_symmetric_quant,
        )

    def _along_channels(self, parameter: Tensor, values: Tensor) -> Tensor:
        """One number a channel (C), or one of all, in the shape that multiplies `values`."""
        return parameter.view((-1, *(1,) * (values.dim() - 1)) if self.is_per_channel else ())

    def _bounds(self, zero_point: Any) -> tuple[Any, Any]:
        """The quantized range less the zero point, which then needs neither adding nor subtracting."""
        observer = self.activation_post_process
        return observer.quant_min - zero_point, observer.quant_max - zero_point


class _FakeQuantize(torch.autograd.Function):
    """Straight-through estimator (Bengio et al. 2013): the gradient of 1 within the range, of 0 outside."""

    @staticmethod
    def forward(
        ctx: Any, values: Tensor, reciprocal: Tensor, scale: Tensor, low: Tensor | int, high: Tensor | int
    ) -> Tensor:
        levels = (values * reciprocal).round_()
        ctx.clips = _may_clip(levels, low, high)
        if ctx.clips:
            clamped = levels.clamp(low, high)  # type: ignore[arg-type]
            ctx.save_for_backward(clamped == levels)
            levels = clamped
        return levels.mul_(scale)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        if ctx.clips:
            (within,) = ctx.saved_tensors
            gradient = torch.where(within, gradient, 0.0)
        return gradient, None, None, None, None


def _may_clip(levels: Tensor, low: Tensor | int, high: Tensor | int) -> bool:
    """Whether a level may be out of the range, by one quick look where one is allowed."""
    if isinstance(low, Tensor):
        return True
    smallest, largest = torch.aminmax(levels)
    return bool(smallest < low) or bool(largest > high)
