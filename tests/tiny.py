"""A network that is trained in a second, ResNet-18 of few channels with half of its blocks."""

from __future__ import annotations

from torch import nn

from pipeline.models.resnet import ResNet18


class Tiny(ResNet18):
    """Images (N, in_channels, H, W) → logits (N, num_classes)."""

    widths = (8, 8, 16, 16)

    def __init__(self, *, in_channels: int, num_classes: int) -> None:
        super().__init__(in_channels=in_channels, num_classes=num_classes, stem="small")

    def _layer(self, in_channels: int, out_channels: int, stride: int) -> nn.Sequential:
        return nn.Sequential(self.block(in_channels, out_channels, stride))


class Dropping(Tiny):
    """The same, which draws from torch's own generator while it is trained."""

    def __init__(self, *, in_channels: int, num_classes: int) -> None:
        super().__init__(in_channels=in_channels, num_classes=num_classes)
        self.avgpool = nn.Sequential(self.avgpool, nn.Dropout(0.2))
