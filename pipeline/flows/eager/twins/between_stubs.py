"""What makes a float network of blocks its own quantizable twin, beside the twins of its blocks."""

from __future__ import annotations

from typing import Any, ClassVar

from torch import Tensor, nn
from torch.ao.quantization import DeQuantStub, QuantStub

from pipeline.flows.eager.layers import fuse_modules


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
