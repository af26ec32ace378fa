"""The quantizable twin of the small residual network."""

from __future__ import annotations

from pipeline.flows.eager.twins.between_stubs import AddingBlock, BetweenStubs
from pipeline.models.compact_resnet import CompactResNet, CompactStage


class QuantizableCompactStage(AddingBlock, CompactStage):
    """The twin of a stage."""


class QuantizableCompactResNet(BetweenStubs, CompactResNet):
    """The twin of the whole network."""

    block, stem = QuantizableCompactStage, ("conv", "bn", "relu")


TWINS = {"compact_resnet": QuantizableCompactResNet}
