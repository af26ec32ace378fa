"""The quantizable twins of MobileNetV2 and MobileNetV3-Large: torchvision's own."""

from __future__ import annotations

import functools

from torch import nn

from pipeline.models.mobilenet import adapt_first_convolution


def _quantizable(name: str, *, in_channels: int, num_classes: int, stem: str | None) -> nn.Module:
    import torchvision.models.quantization  # seconds, which other models need not wait for

    build = getattr(torchvision.models.quantization, name)
    return adapt_first_convolution(build(weights=None, quantize=False, num_classes=num_classes), in_channels, stem)


TWINS = {name: functools.partial(_quantizable, name) for name in ("mobilenet_v2", "mobilenet_v3_large")}
