"""Fusing layers, the quantizable ones by name, and layers that stay float among quantized ones."""

from __future__ import annotations

from collections.abc import Sequence

import torch.ao.nn.intrinsic as nni
import torch.ao.quantization as ao
from torch import Tensor, nn
from torch.ao.quantization import DeQuantStub, QuantStub
from torch.nn.utils.fusion import fuse_conv_bn_eval

from pipeline.flows.names import check_names

# Their classes for QAT derive from these.
_LAYERS = (nn.Conv2d, nn.Linear, nni.ConvReLU2d, nni.ConvBn2d, nni.ConvBnReLU2d, nni.LinearReLU)


def fuse_modules(module: nn.Module, groups: Sequence[Sequence[str]], is_qat: bool) -> None:
    """Fuse each group of `module`'s children (Conv+BN, Conv+BN+ReLU, …) in place.

    With `is_qat` (the module in training mode) the BatchNorm is kept, trainable, beside its
    convolution; without (evaluation mode) it is folded into the weights for good.
    """
    in_mode = ao.fuse_modules_qat if is_qat else ao.fuse_modules
    in_mode(module, [list(group) for group in groups], inplace=True)


class FloatLayer(nn.Module):
    """A layer that computes in float inside an int8 graph: dequantized before it, quantized after it."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.dequant = DeQuantStub()
        self.layer = layer
        self.quant = QuantStub()
        layer.qconfig = None  # type: ignore[assignment]

    def forward(self, x: Tensor) -> Tensor:
        return self.quant(self.layer(self.dequant(x)))

    def freeze_batch_norm(self) -> None:
        """Normalize by the running statistics until the next `train()`."""
        for module in self.layer.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.eval()

    def fold_batch_norm(self) -> None:
        """Fold a BatchNorm that training has kept into the weights; the layer must be in evaluation mode."""
        if isinstance(self.layer, nni.ConvBn2d | nni.ConvBnReLU2d):
            convolution, norm, *relu = self.layer
            folded = fuse_conv_bn_eval(convolution, norm)  # type: ignore[type-var, arg-type]
            self.layer = nni.ConvReLU2d(folded, *relu) if relu else folded


def quantizable_layers(model: nn.Module, prefix: str = "") -> dict[str, nn.Module]:
    """The layers of a fused or prepared model that hold weights and become quantized, by name, in their order."""
    found: dict[str, nn.Module] = {}
    for name, child in model.named_children():
        if isinstance(child, _LAYERS):
            found[prefix + name] = child
        elif not isinstance(child, FloatLayer):
            found |= quantizable_layers(child, f"{prefix}{name}.")
    return found


def keep_float(fused: nn.Module, names: Sequence[str]) -> None:
    """Let the named layers of a fused model stay float, in place, before it is prepared."""
    layers = quantizable_layers(fused)
    for name in set(names):
        fused.set_submodule(name, FloatLayer(layers[name]))


def float_layers(model: nn.Module) -> list[FloatLayer]:
    """The layers that `keep_float` has wrapped."""
    return [module for module in model.modules() if isinstance(module, FloatLayer)]


def check_skip_layers(names: Sequence[str], fused: nn.Module, model: str) -> None:
    """Refuse a name in `backend.skip_layers` that no quantizable layer of the model has.

    Args:
        fused: the model, fused in either mode.
        model: its name, for the message.

    Raises:
        UserError: for the first unknown name, with the nearest right one.
    """
    check_names("backend.skip_layers", names, list(quantizable_layers(fused)), f"{model} has no quantizable layer")
