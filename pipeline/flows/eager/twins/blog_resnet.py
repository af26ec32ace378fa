"""The quantizable twin of the blog post's network."""

from __future__ import annotations

from torch import Tensor
from torch.ao.nn.quantized import FloatFunctional
from torch.ao.quantization import DeQuantStub, QuantStub

from pipeline.flows.eager.fusing import fuse_modules
from pipeline.models.blog_resnet import BlogBlock, BlogResNet18


class QuantizableBlogBlock(BlogBlock):
    """The block with its addition as a module, so that the sum has a range of its own."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__(in_channels, out_channels)
        self.add = FloatFunctional()

    def merge(self, residual: Tensor, shortcut: Tensor) -> Tensor:
        return self.add.add(residual, shortcut)

    def fuse_model(self, is_qat: bool) -> None:
        fuse_modules(self, [["conv1", "bn1", "relu1"], ["conv2", "bn2", "relu2"]], is_qat)


class QuantizableBlogResNet18(BlogResNet18):
    """The float network between a QuantStub and a DeQuantStub; parameters and outputs are the same."""

    block = QuantizableBlogBlock

    def __init__(self, *, in_channels: int, num_classes: int, stem: str | None) -> None:
        super().__init__(in_channels=in_channels, num_classes=num_classes, stem=stem)
        self.quant = QuantStub()
        self.dequant = DeQuantStub()

    def forward(self, x: Tensor) -> Tensor:
        return self.dequant(super().forward(self.quant(x)))

    def fuse_model(self, is_qat: bool) -> None:
        fuse_modules(self, [["conv", "bn", "relu"]], is_qat)
        for module in self.modules():
            if isinstance(module, QuantizableBlogBlock):
                module.fuse_model(is_qat)


TWINS = {"blog_resnet18": QuantizableBlogResNet18}
