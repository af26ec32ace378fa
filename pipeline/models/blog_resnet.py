"""The residual network of the blog post that this project began with.

It is not He et al.'s ResNet-18: convolutions have biases, a block ends in ReLU *before* its addition,
each block has a plain 1×1 convolution as shortcut, and each stage shrinks by max pooling.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn

from pipeline.models import ModelSpec


class BlogBlock(nn.Module):
    """Conv3×3+BN+ReLU twice, plus a 1×1 convolution of the input; (N, in, H, W) → (N, out, H, W)."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.bn1 = nn.BatchNorm2d(out_channels)
        self.relu1 = nn.ReLU()
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.relu2 = nn.ReLU()
        self.shortcut = nn.Conv2d(in_channels, out_channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        residual = self.relu1(self.bn1(self.conv1(x)))
        residual = self.relu2(self.bn2(self.conv2(residual)))
        return self.merge(residual, self.shortcut(x))

    def merge(self, residual: Tensor, shortcut: Tensor) -> Tensor:
        return residual + shortcut


class BlogResNet18(nn.Module):
    """Images (N, in_channels, H, W), at least 65 pixels a side → logits (N, num_classes)."""

    block: ClassVar[type[BlogBlock]] = BlogBlock

    def __init__(self, *, in_channels: int, num_classes: int, stem: str | None) -> None:
        super().__init__()
        assert stem is None, "the post's network has one stem"
        self.conv = nn.Conv2d(in_channels, 64, 7, 2, padding=3)
        self.bn = nn.BatchNorm2d(64)
        self.relu = nn.ReLU()
        self.pool = nn.MaxPool2d(3, 2)
        self.stage1 = self._stage(64, 64)
        self.stage2 = self._stage(64, 128)
        self.stage3 = self._stage(128, 256)
        self.stage4 = self._stage(256, 512)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(512, num_classes)

    def _stage(self, in_channels: int, out_channels: int) -> nn.Sequential:
        return nn.Sequential(
            self.block(in_channels, out_channels), self.block(out_channels, out_channels), nn.MaxPool2d(2, 2)
        )

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool(self.relu(self.bn(self.conv(x))))
        x = self.stage4(self.stage3(self.stage2(self.stage1(x))))
        return self.fc(torch.flatten(self.avgpool(x), 1))


MODELS = (
    ModelSpec(
        name="blog_resnet18",
        float_model=BlogResNet18,
        min_image_size=65,
    ),
)
