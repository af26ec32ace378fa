"""What makes a float network of blocks its own quantizable twin, beside the twins of its blocks."""

from __future__ import annotations

from typing import Any, ClassVar

from torch import Tensor, nn
from torch.ao.nn.quantized import FloatFunctional
from torch.ao.quantization import DeQuantStub, QuantStub

from pipeline.flows.eager.layers import fuse_modules


class AddingBlock(nn.Module):
    """Stands before a float block of two Conv+BN+ReLU: that block with its addition as a module, which has a range."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__(in_channels, out_channels)
        self.add = FloatFunctional()

    def merge(self, residual: Tensor, shortcut: Tensor) -> Tensor:
        return self.add.add(residual, shortcut)

    def fuse_model(self, is_qat: bool) -> None:
        fuse_modules(self, [["conv1", "bn1", "relu1"], ["conv2", "bn2", "relu2"]], is_qat)


class BetweenStubs(nn.Module):
    """Stands before the float network's class: that network between a QuantStub and a DeQuantStub.

    Parameters and outputs are the network's.

    Attributes:
        block: the class of its blocks, which have a `fuse_model` of their own.
        stem: the names of its first convolution, BatchNorm and ReLU.
    """

    block: ClassVar[type[nn.Module]]
    stem: ClassVar[tuple[str, ...]]

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self.quant = QuantStub()
        self.dequant = DeQuantStub()

    def forward(self, x: Tensor) -> Tensor:
        return self.dequant(super().forward(self.quant(x)))

    def fuse_model(self, is_qat: bool) -> None:
        fuse_modules(self, [self.stem], is_qat)
        for module in self.modules():
            if isinstance(module, self.block):
                module.fuse_model(is_qat)  # type: ignore[operator]
