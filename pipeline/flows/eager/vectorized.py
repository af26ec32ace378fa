"""Fake-quantize for training: on the CPU at the speed of memory, and everywhere with the numbers that convert uses.

torch's CPU kernels take 4 to 16 ns an element, one by one (a per-channel weight the most), and its Conv+BN scales the
weight in passes of their own, which makes a QAT step of a small network twice as long as a float step. Here the same
arithmetic is vectorized, and done block by block, so that its many small steps find a block in the processor's cache.

torch's fused kernel also takes scale and zero point otherwise than its observers do, which have the word when the
model is converted: a channel whose weights have all one sign, common in depthwise convolutions, trains with an offset
that int8 does not have. Here both are the observer's, bit for bit those of torch's own, unfused, FakeQuantize.
"""

from __future__ import annotations

from types import MethodType
from typing import Any

import torch
import torch.ao.nn.intrinsic.qat as nniqat
from torch import Tensor, nn
from torch.ao.quantization import FusedMovingAvgObsFakeQuantize

from pipeline.flows.simulation import invertible, simulate
from pipeline.flows.straight_through import Unscale
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
        return simulate(self, X, factor, self.world)


def _convolve_and_normalize(self: Any, input: Tensor) -> Tensor:
    """Conv+BN as torch's ConvBn2d computes it in training, with its scaled weight made in one go.

    Convolved with the weight times gamma / sigma, which is what will be quantized; divided by it again, so that
    BatchNorm finds what it would find in a float model (Krishnamoorthi 2018, "Quantizing deep convolutional networks
    for efficient inference", section 3.2.2).
    """
    fake_quantize = self.weight_fake_quant
    factor = self.bn.weight / torch.sqrt(self.bn.running_var + self.bn.eps)
    factor = invertible(factor, self.weight, fake_quantize)
    if isinstance(fake_quantize, VectorizedFakeQuantize):
        weight = fake_quantize(self.weight, factor)
    else:
        weight = fake_quantize(self.weight * factor.view(-1, 1, 1, 1))
    convolved: Tensor = Unscale.apply(self._conv_forward(input, weight, None), factor)
    if self.bias is not None:
        convolved = convolved + self.bias.view(1, -1, 1, 1)
    return self.bn(convolved)
