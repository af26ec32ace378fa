"""ResNet-18 (He et al. 2015, "Deep Residual Learning for Image Recognition", table 1).

Shortcuts are option B (a 1×1 convolution where the shape changes). Names follow torchvision, so its
ImageNet weights load. `stem="imagenet"` is the paper's 7×7 stride-2 convolution and max pooling;
`stem="small"` a 3×3 stride-1 convolution without pooling, the usual choice for 32-pixel images.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn

from pipeline.models import ModelSpec


class BasicBlock(nn.Module):
    """Two 3×3 convolutions and a shortcut; (N, in, H, W) → (N, out, H/stride, W/stride)."""

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(out_channels)
        self.relu1 = nn.ReLU()
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.relu2 = nn.ReLU()
        self.downsample: nn.Module | None = None
        if stride != 1 or in_channels != out_channels:
            self.downsample = nn.Sequential(
                nn.Conv2d(in_channels, out_channels, 1, stride, bias=False), nn.BatchNorm2d(out_channels)
            )

    def forward(self, x: Tensor) -> Tensor:
        residual = self.relu1(self.bn1(self.conv1(x)))
        residual = self.bn2(self.conv2(residual))
        return self.merge(residual, x if self.downsample is None else self.downsample(x))

    def merge(self, residual: Tensor, shortcut: Tensor) -> Tensor:
        return self.relu2(residual + shortcut)


class ResNet18(nn.Module):
    """Images (N, in_channels, H, W) → logits (N, num_classes)."""

    block: ClassVar[type[BasicBlock]] = BasicBlock

    def __init__(self, *, in_channels: int, num_classes: int, stem: str | None) -> None:
        super().__init__()
        if stem == "small":
            self.conv1 = nn.Conv2d(in_channels, 64, 3, padding=1, bias=False)
            self.maxpool: nn.Module = nn.Identity()
        else:
            self.conv1 = nn.Conv2d(in_channels, 64, 7, 2, padding=3, bias=False)
            self.maxpool = nn.MaxPool2d(3, 2, padding=1)
        self.bn1 = nn.BatchNorm2d(64)
        self.relu = nn.ReLU()
        self.layer1 = self._layer(64, 64, 1)
        self.layer2 = self._layer(64, 128, 2)
        self.layer3 = self._layer(128, 256, 2)
        self.layer4 = self._layer(256, 512, 2)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(512, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def _layer(self, in_channels: int, out_channels: int, stride: int) -> nn.Sequential:
        return nn.Sequential(self.block(in_channels, out_channels, stride), self.block(out_channels, out_channels, 1))

    def forward(self, x: Tensor) -> Tensor:
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return self.fc(torch.flatten(self.avgpool(x), 1))


MODELS = (
    ModelSpec(
        name="resnet18",
        float_model=ResNet18,
        stems=("imagenet", "small"),
        min_image_size=8,
        torchvision_weights="ResNet18_Weights",
    ),
)
