"""Switching the observers and fake-quantize modules of a prepared model."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager

import torch.ao.nn.intrinsic.qat as nniqat
import torch.ao.quantization as ao
from torch import Tensor, nn
from torch.ao.quantization import FakeQuantizeBase, ObserverBase

from pipeline.flows.eager.layers import float_layers
from pipeline.flows.simulation import switched_off


def count_fake_quantize(model: nn.Module) -> int:
    """How many fake-quantize modules the model has; 0 means that it is not trained quantization-aware."""
    return len(_fake_quantizes(model))


@contextmanager
def observers_off(model: nn.Module) -> Iterator[None]:
    """Keep the ranges as they are within the block: evaluation mode alone does not stop the observers."""
    inside = {id(module.activation_post_process) for module in _fake_quantizes(model)}
    # Those outside of fake-quantize modules, of a model prepared for calibration, have no switch.
    bare = [module for module in model.modules() if isinstance(module, ObserverBase) and id(module) not in inside]
    for observer in bare:
        observer.forward = _unobserved  # type: ignore[method-assign]
    try:
        with switched_off(_fake_quantizes(model), "observer_enabled"):
            yield
    finally:
        for observer in bare:
            del observer.forward


def fake_quantize_off(model: nn.Module) -> AbstractContextManager[None]:
    """Compute in float within the block, the observers as they are: what calibration must see."""
    return switched_off(_fake_quantizes(model), "fake_quant_enabled")


def quantized_weight(layer: nn.Module) -> Tensor:
    """The weight of a layer of a prepared model, fake-quantized where that is switched on."""
    return layer.weight_fake_quant(layer.weight)  # type: ignore[operator, no-any-return]


def switch(layer: nn.Module, weight: bool, activation: bool) -> None:
    """Quantize (simulated) the weights, or the output, of one layer of a prepared model, or leave them float."""
    layer.weight_fake_quant.enable_fake_quant(weight)  # type: ignore[operator, union-attr]
    layer.activation_post_process.enable_fake_quant(activation)  # type: ignore[operator, union-attr]


def quantized_output(layer: nn.Module, inputs: tuple[Tensor, ...]) -> Tensor:
    """What one layer, of a model in which nothing is quantized, gives when its weights and its output are."""
    switch(layer, weight=True, activation=True)
    output: Tensor = layer(*inputs)
    switch(layer, weight=False, activation=False)
    return output


def switch_all(model: nn.Module, enabled: bool) -> None:
    """Quantize (simulated) everything in a prepared model, or nothing."""
    model.apply(ao.enable_fake_quant if enabled else ao.disable_fake_quant)


def freeze_observers(model: nn.Module) -> None:
    """Keep the quantization ranges as they are from here on."""
    model.apply(ao.disable_observer)


def freeze_batch_norm(model: nn.Module) -> None:
    """Normalize by the running statistics from here on, as the converted model will."""
    model.apply(nniqat.freeze_bn_stats)
    for layer in float_layers(model):
        layer.freeze_batch_norm()


def _unobserved(x: Tensor) -> Tensor:
    return x


def _fake_quantizes(model: nn.Module) -> list[FakeQuantizeBase]:
    return [module for module in model.modules() if isinstance(module, FakeQuantizeBase)]
