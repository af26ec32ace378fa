"""A small residual network that learns CIFAR-10 in an hour or two on a laptop's CPU.

Its widths and sizes are those of airbench94 (Jordan 2024, "94% on CIFAR-10 in 3.29 Seconds on a Single GPU",
arXiv:2404.00498, section 3.1), which spends little where images are large. Here each stage's second convolution is
residual, the first one is learned, and BatchNorm and ReLU follow a convolution at once, so that they fuse with it.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn

from pipeline.models import ModelSpec


class CompactStage(nn.Module):
    """Conv3×3+BN+ReLU, halved by max pooling, then another one as residual; (N, in, H, W) → (N, out, H/2, W/2)."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(out_channels)
        self.relu1 = nn.ReLU()
        self.pool = nn.MaxPool2d(2)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.relu2 = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool(self.relu1(self.bn1(self.conv1(x))))
        return self.merge(self.relu2(self.bn2(self.conv2(x))), x)

    def merge(self, residual: Tensor, shortcut: Tensor) -> Tensor:
        return residual + shortcut


class CompactResNet(nn.Module):
    """Images (N, in_channels, H, W), at least 16 pixels a side → logits (N, num_classes)."""

    block: ClassVar[type[CompactStage]] = CompactStage

    def __init__(self, *, in_channels: int, num_classes: int, stem: str | None) -> None:
        super().__init__()
        assert stem is None, "this network has one stem"
        self.conv = nn.Conv2d(in_channels, 24, 2, bias=False)
        self.bn = nn.BatchNorm2d(24)
        self.relu = nn.ReLU()
        self.stages = nn.Sequential(self.block(24, 64), self.block(64, 256), self.block(256, 256))
        self.pool = nn.AdaptiveMaxPool2d(1)
        self.fc = nn.Linear(256, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stages(self.relu(self.bn(self.conv(x))))
        return self.fc(torch.flatten(self.pool(x), 1))


MODELS = (ModelSpec(name="compact_resnet", float_model=CompactResNet, min_image_size=16),)
