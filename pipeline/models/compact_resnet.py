"""A small residual network that learns CIFAR-10 in an hour or two on a laptop's CPU.

Its widths and sizes are those of airbench94 (Jordan 2024, "94% on CIFAR-10 in 3.29 Seconds on a Single GPU",
arXiv:2404.00498, section 3.1), which spends little where images are large. Here each stage's second convolution is
residual, and BatchNorm and ReLU follow a convolution at once, so that they fuse with it. It begins as airbench94 does
(section 3.3 to 3.4), as far as that needs no data: the first layer's outputs are almost uncorrelated, and convolutions
that widen pass on what they get. Its logits are a ninth of the last layer's outputs, which so bears a high rate.
"""

from __future__ import annotations

import math
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
        with torch.no_grad():
            nn.init.dirac_(self.conv1.weight[:in_channels])

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool(self.relu1(self.bn1(self.conv1(x))))
        return self.merge(self.relu2(self.bn2(self.conv2(x))), x)

    def merge(self, residual: Tensor, shortcut: Tensor) -> Tensor:
        return residual + shortcut


class CompactResNet(nn.Module):
    """Images (N, in_channels, H, W), at least 25 pixels a side → logits (N, num_classes)."""

    block: ClassVar[type[CompactStage]] = CompactStage

    def __init__(self, *, in_channels: int, num_classes: int, stem: str | None) -> None:
        super().__init__()
        assert stem is None, "this network has one stem"
        width = 8 * in_channels
        self.conv = nn.Conv2d(in_channels, width, 2, bias=False)
        self.conv.weight = nn.Parameter(_uncorrelated_filters(in_channels))
        self.bn = nn.BatchNorm2d(width)
        self.relu = nn.ReLU()
        self.stages = nn.Sequential(self.block(width, 64), self.block(64, 256), self.block(256, 256))
        # At 32 px the maximum of the whole map: torch has no adaptive one for int8.
        self.pool = nn.Sequential(nn.MaxPool2d(3), nn.AdaptiveAvgPool2d(1))
        self.fc = nn.Linear(256, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stages(self.relu(self.bn(self.conv(x))))
        return self.temper(self.fc(torch.flatten(self.pool(x), 1)), 1 / 9)

    def temper(self, logits: Tensor, factor: float) -> Tensor:
        return logits * factor


def _uncorrelated_filters(channels: int) -> Tensor:
    """The cosine transform of 2×2 pixels over place and colour, and its negatives: (8·channels, channels, 2, 2).

    In photographs, neighbours and colours are alike. Their sums and differences are hardly so, and BatchNorm makes them
    equally large: that is nearly the whitening of airbench94, without a look at the data.
    """
    places, colours = _cosines(2), _cosines(channels)
    filters = torch.einsum("ac,iy,jx->aijcyx", colours, places, places).flatten(0, 2)
    return torch.cat([filters, -filters])


def _cosines(size: int) -> Tensor:
    """The orthonormal cosine transform (DCT-II) as a matrix, a row for each frequency."""
    order = torch.arange(size)
    rows = torch.cos(math.pi * order[:, None] * (order + 0.5) / size)
    return rows / rows.norm(dim=1, keepdim=True)


MODELS = (ModelSpec(name="compact_resnet", float_model=CompactResNet, min_image_size=25),)
