"""The quantizable layers of a model by name, and layers that stay float among quantized ones."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch.ao.nn.intrinsic as nni
from torch import Tensor, nn
from torch.ao.quantization import DeQuantStub, QuantStub
from torch.nn.utils.fusion import fuse_conv_bn_eval

from pipeline.host.errors import UserError, nearest

# Their classes for QAT derive from these.
_LAYERS = (nn.Conv2d, nn.Linear, nni.ConvReLU2d, nni.ConvBn2d, nni.ConvBnReLU2d, nni.LinearReLU)


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


def quantizable_layers(model: nn.Module) -> dict[str, nn.Module]:
    """The layers of a fused or prepared model that hold weights and become quantized, by name, in their order."""
    return dict(_walk(model, ""))


def _walk(module: nn.Module, prefix: str) -> Iterator[tuple[str, nn.Module]]:
    for name, child in module.named_children():
        if isinstance(child, _LAYERS):
            yield f"{prefix}{name}", child
        elif not isinstance(child, FloatLayer):
            yield from _walk(child, f"{prefix}{name}.")


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
    known = list(quantizable_layers(fused))
    for name in names:
        if name not in known:
            close = nearest(name, known)
            hint = f"did you mean '{close}'?" if close else f"allowed: {', '.join(known)}"
            raise UserError(
                f"backend.skip_layers=[{','.join(names)}]: {model} has no quantizable layer '{name}' among its "
                f"{len(known)} ({known[0]} to {known[-1]}); {hint}"
            )
