"""The quantizable twin of the small residual network."""

from __future__ import annotations

from torch import Tensor

from pipeline.flows.eager.twins.between_stubs import AddingBlock, BetweenStubs
from pipeline.models.compact_resnet import CompactResNet, CompactStage


class QuantizableCompactStage(AddingBlock, CompactStage):
    """The twin of a stage."""


class QuantizableCompactResNet(BetweenStubs, CompactResNet):
    """The twin of the whole network."""

    block, stem = QuantizableCompactStage, ("conv", "bn", "relu")

    def forward(self, x: Tensor) -> Tensor:
        return CompactResNet.forward(self, self.quant(x))

    def temper(self, logits: Tensor, factor: float) -> Tensor:
        return super().temper(self.dequant(logits), factor)  # here: torch multiplies no int8 tensor by a number


TWINS = {"compact_resnet": QuantizableCompactResNet}
