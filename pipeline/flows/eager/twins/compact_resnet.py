"""The quantizable twin of the small residual network."""

from __future__ import annotations

from torch import Tensor
from torch.ao.nn.quantized import FloatFunctional

from pipeline.flows.eager.layers import fuse_modules
from pipeline.flows.eager.twins.between_stubs import BetweenStubs
from pipeline.models.compact_resnet import CompactResNet, CompactStage


class QuantizableCompactStage(CompactStage):
    """The stage with its addition as a module, so that the sum has a range of its own."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__(in_channels, out_channels)
        self.add = FloatFunctional()

    def merge(self, residual: Tensor, shortcut: Tensor) -> Tensor:
        return self.add.add(residual, shortcut)

    def fuse_model(self, is_qat: bool) -> None:
        fuse_modules(self, [["conv1", "bn1", "relu1"], ["conv2", "bn2", "relu2"]], is_qat)


class QuantizableCompactResNet(BetweenStubs, CompactResNet):
    """The twin of the whole network."""

    block, stem = QuantizableCompactStage, ("conv", "bn", "relu")


TWINS = {"compact_resnet": QuantizableCompactResNet}
