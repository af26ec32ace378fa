"""ResNet-18 (He et al. 2015), MobileNetV2 and MobileNetV3-Large: torchvision's own classes.

torchvision's quantizable builders replace ReLU6 by ReLU, because eager mode fuses Conv+BN with ReLU
alone. The float network gets the same replacement here: float and quantizable then agree bit for
bit, and what quantization costs is not mixed with what another activation costs.

`stem="small"` is the usual change for 32-pixel images: ResNet-18 begins with a 3×3 convolution of stride 1 and no
pooling instead of a 7×7 one of stride 2 and max pooling, a MobileNet with stride 1 in its first convolution.
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
    return adapt_stem(network, in_channels, stem)


def adapt_stem(network: nn.Module, in_channels: int, stem: str | None) -> nn.Module:
    """Give a network's first convolution so many input channels, and the shape of its stem, in place."""
    small, is_resnet = stem == "small", hasattr(network, "maxpool")
    name = "conv1" if is_resnet else "features.0.0"
    size = 7 if is_resnet and not small else 3
    out_channels = int(network.get_submodule(name).out_channels)  # type: ignore[arg-type]
    convolution = nn.Conv2d(in_channels, out_channels, size, 1 if small else 2, padding=size // 2, bias=False)
    nn.init.kaiming_normal_(convolution.weight, mode="fan_out", nonlinearity="relu")
    network.set_submodule(name, convolution)
    if is_resnet and small:
        network.maxpool = nn.Identity()
    return network


def _spec(name: str, classifier: str, torchvision_weights: str) -> ModelSpec:
    return ModelSpec(
        name=name,
        float_model=functools.partial(_float, name),
        stems=("imagenet", "small"),
        min_image_size=8,
        classifier=classifier,
        torchvision_weights=torchvision_weights,
    )


MODELS = (
    _spec("resnet18", "fc.", "ResNet18_Weights"),
    _spec("mobilenet_v2", "classifier.", "MobileNet_V2_Weights"),
    _spec("mobilenet_v3_large", "classifier.", "MobileNet_V3_Large_Weights"),
)
