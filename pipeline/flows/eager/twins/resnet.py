"""ResNet-18's quantizable twin."""

from __future__ import annotations

from torch import Tensor
from torch.ao.nn.quantized import FloatFunctional

from pipeline.flows.eager.layers import fuse_modules
from pipeline.flows.eager.twins.between_stubs import BetweenStubs
from pipeline.models.resnet import BasicBlock, ResNet18


class QuantizableBasicBlock(BasicBlock):
    """The block with its addition as a module, so that the sum has a range of its own."""

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__(in_channels, out_channels, stride)
        self.add_relu = FloatFunctional()

    def merge(self, residual: Tensor, shortcut: Tensor) -> Tensor:
        return self.add_relu.add_relu(residual, shortcut)

    def fuse_model(self, is_qat: bool) -> None:
        fuse_modules(self, [["conv1", "bn1", "relu1"], ["conv2", "bn2"]], is_qat)
        if self.downsample is not None:
            fuse_modules(self.downsample, [["0", "1"]], is_qat)


class QuantizableResNet18(BetweenStubs, ResNet18):
    """The twin of the whole network."""

    block, stem = QuantizableBasicBlock, ("conv1", "bn1", "relu")


TWINS = {"resnet18": QuantizableResNet18}
