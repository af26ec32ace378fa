"""Fake-quantize for training: on the CPU at the speed of memory, and everywhere with the numbers that convert uses.

torch's CPU kernels take 4 to 16 ns an element, one by one (a per-channel weight the most), and its Conv+BN scales the
weight in passes of their own, which makes a QAT step of a small network twice as long as a float step. Here the same
arithmetic is vectorized, and done block by block, so that its many small steps find a block in the processor's cache.

torch's fused kernel also takes scale and zero point otherwise than its observers do, which have the word when the
model is converted: a channel whose weights have all one sign, common in depthwise convolutions, trains with an offset
that int8 does not have. Here both are the observer's, bit for bit those of torch's own, unfused, FakeQuantize.
"""

from __future__ import annotations

import math
from types import MethodType
from typing import Any

import numpy as np
import torch
import torch.ao.nn.intrinsic.qat as nniqat
from torch import Tensor, nn
from torch.ao.quantization import FusedMovingAvgObsFakeQuantize

from pipeline.flows.eager.straight_through import FakeQuantize, TracedFakeQuantize, Unscale, rows_of_block
from pipeline.host.world import World

_CONV_BN = (nniqat.ConvBn2d, nniqat.ConvBnReLU2d)


def vectorize(prepared: nn.Module) -> None:
    """Let the fake-quantize modules of a prepared model compute vectorized; its state stays the same."""
    for module in prepared.modules():
        if type(module) is FusedMovingAvgObsFakeQuantize and module.ch_axis in (-1, 0):
            # The module as it is, buffers and all, with another forward: nothing is copied that could differ.
            module.__class__ = VectorizedFakeQuantize
    for module in prepared.modules():
        if type(module) in _CONV_BN:
            # Not another class here: convert folds the BatchNorm of exactly torch's own.
            module._forward_approximate = MethodType(_convolve_and_normalize, module)  # type: ignore[assignment]


def size_ranges(prepared: nn.Module) -> None:
    """Give per-channel ranges that have seen nothing yet the length that they get on first sight.

    A compiled model cannot: its graph is made for tensors of one shape.
    """
    for module in prepared.modules():
        fake_quantize = getattr(module, "weight_fake_quant", None)
        if isinstance(fake_quantize, VectorizedFakeQuantize):
            assert isinstance(module.weight, Tensor)
            fake_quantize.size_ranges(len(module.weight))


def observe_over_all(prepared: nn.Module, world: World) -> None:
    """Let the ranges of activations in a prepared model be those of what all processes see."""
    for module in prepared.modules():
        fake_quantize = getattr(module, "activation_post_process", None)
        if isinstance(fake_quantize, VectorizedFakeQuantize):
            fake_quantize.world = world


class VectorizedFakeQuantize(FusedMovingAvgObsFakeQuantize):
    """A moving average of minimum and maximum, and fake-quantize with the scale and zero point that follow from it.

    `world`: the processes whose activations make up a batch; None where all of it is here, as weights always are.
    """

    world: World | None = None

    def forward(self, X: Tensor) -> Tensor:
        if torch.compiler.is_compiling():  # no look at a value: the compiler fuses all of it
            self._move(*self._extremes(X.detach()), self.observer_enabled)
            return torch.where(self.fake_quant_enabled == 1, self._fake_quantize_traced(X), X)
        if self.observer_enabled.item():
            self._move(*self._over_all(*self._extremes(X.detach())))
        if not self.fake_quant_enabled.item():
            return X
        if X.device.type != "cpu" or X.dtype != torch.float32:
            return self._fake_quantize_by_torch(X)
        return self._fake_quantize(X, None)

    def scale_and_fake_quantize(self, weight: Tensor, factor: Tensor) -> Tensor:
        """As `forward` of the product of `weight` (C, …) and `factor` (C), one for each channel."""
        on_cpu = weight.device.type == "cpu" and weight.dtype == torch.float32 and self.is_per_channel
        if torch.compiler.is_compiling() or not on_cpu or not self.fake_quant_enabled.item():
            return self(weight * factor.view(-1, *(1,) * (weight.dim() - 1)))
        if self.observer_enabled.item():
            # A product is rounded monotonically, so its extremes are the products of the extremes.
            ends = torch.stack(self._extremes(weight.detach())) * factor.detach()
            self._move(*ends.aminmax(dim=0))
        return self._fake_quantize(weight, factor)

    def _over_all(self, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
        """The extremes of what all processes see."""
        return (low, high) if self.world is None else self.world.extremes(low, high)

    def size_ranges(self, channels: int) -> None:
        """Make room for so many channels, where nothing was seen yet."""
        observer = self.activation_post_process
        if self.is_per_channel and observer.min_val.numel() == 0:
            observer.min_val.resize_(channels).fill_(math.inf)
            observer.max_val.resize_(channels).fill_(-math.inf)
            self.scale.resize_(channels).fill_(1)
            self.zero_point.resize_(channels).zero_()

    def _extremes(self, values: Tensor) -> tuple[Tensor, Tensor]:
        """Minimum and maximum: of each channel (C), or of all values ()."""
        if not self.is_per_channel:
            return torch.aminmax(values)
        rows = values.flatten(1)
        if torch.compiler.is_compiling():
            return rows.amin(1), rows.amax(1)
        blocks = rows.split(rows_of_block(rows))
        both = [(block.amin(1), block.amax(1)) for block in blocks]
        return torch.cat([low for low, _ in both]), torch.cat([high for _, high in both])

    def _move(self, low: Tensor, high: Tensor, where: Tensor | None = None) -> None:
        """Move the ranges towards what was seen (where given, only if it is 1), and take the numbers from them."""
        self.size_ranges(low.numel())
        observer = self.activation_post_process
        buffers = (observer.min_val, observer.max_val, self.scale, self.zero_point)
        if where is None and low.device.type == "cpu":
            # A handful of numbers, in which torch's time a call would be all: numpy takes a tenth of it.
            views = [buffer.numpy() for buffer in buffers]
            with np.errstate(invalid="ignore"):  # the average with an infinite past, which is not taken
                moved = _moved(np, observer, views[0], views[1], low.numpy(), high.numpy())
            for view, value in zip(views, moved, strict=True):
                view[...] = value
            return
        for buffer, value in zip(buffers, _moved(torch, observer, buffers[0], buffers[1], low, high), strict=True):
            value = value.view(buffer.shape)
            buffer.copy_(value if where is None else torch.where(where[0] == 1, value, buffer))

    def _fake_quantize_by_torch(self, values: Tensor) -> Tensor:
        low, high = self.activation_post_process.quant_min, self.activation_post_process.quant_max
        if self.is_per_channel:
            return torch.fake_quantize_per_channel_affine(values, self.scale, self.zero_point, 0, low, high)
        return torch.fake_quantize_per_tensor_affine(values, self.scale, self.zero_point, low, high)

    def _fake_quantize_traced(self, values: Tensor) -> Tensor:
        shape = (-1, *(1,) * (values.dim() - 1)) if self.is_per_channel else ()
        scale, zero_point = self.scale.view(shape), self.zero_point.view(shape)
        observer = self.activation_post_process
        low, high = observer.quant_min - zero_point, observer.quant_max - zero_point
        fake_quantized: Tensor = TracedFakeQuantize.apply(values, 1 / scale, scale, low, high)
        return fake_quantized

    def _fake_quantize(self, values: Tensor, factor: Tensor | None) -> Tensor:
        observer, zero_point = self.activation_post_process, int(self.zero_point[0])
        # One for all, since the scheme by channel is symmetric.
        assert (self.zero_point == zero_point).all()
        low, high = observer.quant_min - zero_point, observer.quant_max - zero_point
        fake_quantized: Tensor = FakeQuantize.apply(values, factor, self.scale, low, high)
        return fake_quantized


def _moved(library: Any, observer: Any, past_low: Any, past_high: Any, low: Any, high: Any) -> tuple[Any, ...]:
    """The ranges moved to what was seen, and their scale and zero point, all as arrays of numpy or of torch.

    By the arithmetic of torch's moving-average observers and of their `calculate_qparams`, which can be neither
    compiled nor asked for others' ranges.
    """
    low, high = (
        library.where(library.isinf(past), now, past + observer.averaging_constant * (now - past))
        for past, now in ((past_low, low), (past_high, high))
    )
    quant_min, quant_max, eps = observer.quant_min, observer.quant_max, torch.finfo(torch.float32).eps
    below, above = library.clip(low, None, 0), library.clip(high, 0, None)
    if observer.qscheme in (torch.per_tensor_symmetric, torch.per_channel_symmetric):
        larger = library.maximum(-below, above)
        scale = library.clip(larger / (float(quant_max - quant_min) / 2), eps, None)
        middle = (quant_min + quant_max) // 2 if observer.has_customized_qrange else 128
        return low, high, scale, library.full_like(scale, 0 if observer.dtype == torch.qint8 else middle)
    scale = library.clip((above - below) / float(quant_max - quant_min), eps, None)
    zero_point = quant_min - library.round(below / scale)
    return low, high, scale, library.clip(zero_point, quant_min, quant_max)


def _convolve_and_normalize(self: Any, input: Tensor) -> Tensor:
    """Conv+BN as torch's ConvBn2d computes it in training, with its scaled weight made in one go.

    Convolved with the weight times gamma / sigma, which is what will be quantized; divided by it again, so that
    BatchNorm finds what it would find in a float model (Krishnamoorthi 2018, "Quantizing deep convolutional networks
    for efficient inference", section 3.2.2).
    """
    factor = self.bn.weight / torch.sqrt(self.bn.running_var + self.bn.eps)
    factor, fake_quantize = _invertible(factor, self.weight, self.weight_fake_quant), self.weight_fake_quant
    if isinstance(fake_quantize, VectorizedFakeQuantize):
        weight = fake_quantize.scale_and_fake_quantize(self.weight, factor)
        convolved: Tensor = Unscale.apply(self._conv_forward(input, weight, None), factor)
    else:
        weight = fake_quantize(self.weight * factor.view(-1, 1, 1, 1))
        convolved = self._conv_forward(input, weight, None) / factor.view(1, -1, 1, 1)
    if self.bias is not None:
        convolved = convolved + self.bias.view(1, -1, 1, 1)
    return self.bn(convolved)


def _invertible(factor: Tensor, weight: Tensor, fake_quantize: Any) -> Tensor:
    """The factors (C) of the channels of `weight` (C, …), with another one where dividing by it would say nothing.

    A factor of 0 makes weights of 0, and 0 / 0 is no number. One so small that the scale of its channel stands at its
    floor leaves few levels or none, and the division makes rounding errors large. BatchNorm multiplies what was
    divided by gamma, so any factor gives the same output: beta alone where gamma is 0. One that the levels can hold
    also gives gamma the gradient of a float model. It moves no range: by channel the scale stays at its floor; and
    one scale for all channels is that of larger weights.
    """
    observer = getattr(fake_quantize, "activation_post_process", fake_quantize)  # an observer may stand alone
    with torch.no_grad():
        largest = torch.linalg.vector_norm(weight.flatten(1), math.inf, dim=1)
        reached = largest * factor.abs()
        floor = torch.full_like(reached, observer.quant_max * torch.finfo(torch.float32).eps)
        if observer.qscheme in (torch.per_channel_symmetric, torch.per_channel_affine):
            lost, reach = reached < floor, floor
        else:
            lost, reach = factor == 0, torch.maximum(reached.amax() / 2, floor)
        lost = lost & ((largest > 0) | (factor == 0))  # weights of 0 give 0 by any other factor
        other = torch.where(largest > 0, reach / largest.clamp(min=torch.finfo(torch.float32).tiny), 1.0)
    return torch.where(lost, torch.copysign(other, factor.detach()), factor)
