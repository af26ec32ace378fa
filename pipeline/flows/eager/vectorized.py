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

import torch
import torch.ao.nn.intrinsic.qat as nniqat
from torch import Tensor, nn
from torch.ao.quantization import FusedMovingAvgObsFakeQuantize

from pipeline.flows.eager.ranges import extremes, observe
from pipeline.flows.eager.straight_through import FakeQuantize, Unscale
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

    def forward(self, X: Tensor, factor: Tensor | None = None) -> Tensor:
        """Fake-quantize `X`, or its product with a factor a channel (C)."""
        on_cpu = X.device.type == "cpu" and X.dtype == torch.float32
        if factor is not None and not (on_cpu and self.is_per_channel and self.fake_quant_enabled.item()):
            X, factor = X * factor.view(-1, *(1,) * (X.dim() - 1)), None
        if self.observer_enabled.item():
            low, high = extremes(X, self.is_per_channel)
            if factor is not None:
                # A product is rounded monotonically, so its extremes are the products of the extremes.
                low, high = (torch.stack((low, high)) * factor.detach()).aminmax(dim=0)
            observe(self, *((low, high) if self.world is None else self.world.extremes(low, high)))
        if not self.fake_quant_enabled.item():
            return X
        lowest, highest = self.activation_post_process.quant_min, self.activation_post_process.quant_max
        if on_cpu:
            zero_point = int(self.zero_point[0])
            # One for all, since the scheme by channel is symmetric.
            assert (self.zero_point == zero_point).all()
            fake_quantized: Tensor = FakeQuantize.apply(
                X, factor, self.scale, lowest - zero_point, highest - zero_point
            )
            return fake_quantized
        if self.is_per_channel:
            return torch.fake_quantize_per_channel_affine(X, self.scale, self.zero_point, 0, lowest, highest)
        return torch.fake_quantize_per_tensor_affine(X, self.scale, self.zero_point, lowest, highest)


def _convolve_and_normalize(self: Any, input: Tensor) -> Tensor:
    """Conv+BN as torch's ConvBn2d computes it in training, with its scaled weight made in one go.

    Convolved with the weight times gamma / sigma, which is what will be quantized; divided by it again, so that
    BatchNorm finds what it would find in a float model (Krishnamoorthi 2018, "Quantizing deep convolutional networks
    for efficient inference", section 3.2.2).
    """
    fake_quantize = self.weight_fake_quant
    factor = self.bn.weight / torch.sqrt(self.bn.running_var + self.bn.eps)
    factor = _invertible(factor, self.weight, fake_quantize)
    if isinstance(fake_quantize, VectorizedFakeQuantize):
        weight = fake_quantize(self.weight, factor)
    else:
        weight = fake_quantize(self.weight * factor.view(-1, 1, 1, 1))
    convolved: Tensor = Unscale.apply(self._conv_forward(input, weight, None), factor)
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
