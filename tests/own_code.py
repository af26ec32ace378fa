"""Code of a user's own, as it stands in a folder outside of this repository."""

from __future__ import annotations

from pathlib import Path

NETS = """
import torch
from torch import nn
from torch.ao.nn.quantized import FloatFunctional
from torch.ao.quantization import DeQuantStub, QuantStub, fuse_modules, fuse_modules_qat


def block(inputs, outputs):
    return nn.Sequential(nn.Conv2d(inputs, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU())


class Net(nn.Module):
    def __init__(self, num_classes, in_channels, width=8):
        super().__init__()
        self.first, self.second = block(in_channels, width), block(width, width)
        self.head = nn.Linear(64 * width, num_classes)

    def add(self, x, y):
        return x + y

    def forward(self, x):
        x = self.first(nn.functional.avg_pool2d(x, 4))
        return self.head(torch.flatten(self.add(x, self.second(x)), 1))


class QuantizableNet(Net):
    def __init__(self, **settings):
        super().__init__(**settings)
        self.quant, self.dequant, self.sum = QuantStub(), DeQuantStub(), FloatFunctional()

    def add(self, x, y):
        return self.sum.add(x, y)

    def forward(self, x):
        return self.dequant(super().forward(self.quant(x)))

    def fuse_model(self, is_qat):
        for part in (self.first, self.second):
            (fuse_modules_qat if is_qat else fuse_modules)(part, [["0", "1", "2"]], inplace=True)
"""


def write(folder: Path, package: str, **modules: str) -> None:
    """A package of modules by their names, with the source of each."""
    (folder / package).mkdir(parents=True, exist_ok=True)
    for name, source in modules.items():
        (folder / package / f"{name}.py").write_text(source)
