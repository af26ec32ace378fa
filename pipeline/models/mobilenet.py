"""MobileNetV2 and MobileNetV3-Large through torchvision's own classes.

torchvision's quantizable builders replace ReLU6 by ReLU, because eager mode fuses Conv+BN with ReLU
alone. The float network gets the same replacement here: float and quantizable then agree bit for
bit, and what quantization costs is not mixed with what another activation costs. `stem="small"`
gives the first convolution stride 1, the usual change for 32-pixel images.
"""

from __future__ import annotations

import functools

from torch import nn

from pipeline.models import ModelSpec


def _float(name: str, *, in_channels: int, num_classes: int, stem: str | None) -> nn.Module:
    import torchvision.models  # seconds, which other models need not wait for

    network = getattr(torchvision.models, name)(weights=None, num_classes=num_classes)
    for parent in network.modules():
        for child_name, child in parent.named_children():
            if type(child) in (nn.ReLU, nn.ReLU6):
                setattr(parent, child_name, nn.ReLU())
    return adapt_first_convolution(network, in_channels, stem)


def adapt_first_convolution(network: nn.Module, in_channels: int, stem: str | None) -> nn.Module:
    """Give a network's first convolution so many input channels, and the stride of its stem, in place."""
    stem_layer = network.get_submodule("features.0")
    assert isinstance(stem_layer, nn.Sequential)
    first = stem_layer[0]
    assert isinstance(first, nn.Conv2d)
    stride = 1 if stem == "small" else 2
    convolution = nn.Conv2d(in_channels, first.out_channels, 3, stride, padding=1, bias=False)
    nn.init.kaiming_normal_(convolution.weight, mode="fan_out")
    stem_layer[0] = convolution
    return network


def _spec(name: str, torchvision_weights: str) -> ModelSpec:
    return ModelSpec(
        name=name,
        float_model=functools.partial(_float, name),
        stems=("imagenet", "small"),
        min_image_size=8,
        torchvision_weights=torchvision_weights,
    )


MODELS = (
    _spec("mobilenet_v2", "MobileNet_V2_Weights"),
    _spec("mobilenet_v3_large", "MobileNet_V3_Large_Weights"),
)
