"""Switching the observers and fake-quantize modules of a prepared model."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch.ao.nn.intrinsic.qat as nniqat
import torch.ao.quantization as ao
from torch import Tensor, nn
from torch.ao.quantization import FakeQuantizeBase, ObserverBase

from pipeline.flows.eager.layers import float_layers


def count_fake_quantize(model: nn.Module) -> int:
    """How many fake-quantize modules the model has; 0 means that it is not trained quantization-aware."""
    return len(_fake_quantizes(model))


@contextmanager
def observers_off(model: nn.Module) -> Iterator[None]:
    """Keep the ranges as they are within the block: evaluation mode alone does not stop the observers."""
    before = [module.observer_enabled.clone() for module in _fake_quantizes(model)]
    model.apply(ao.disable_observer)
    bare = _bare_observers(model)
    for observer in bare:  # it has no switch
        observer.forward = _unobserved  # type: ignore[method-assign]
    try:
        yield
    finally:
        for observer in bare:
            del observer.forward
        for module, enabled in zip(_fake_quantizes(model), before, strict=True):
            module.observer_enabled.copy_(enabled)


@contextmanager
def fake_quantize_off(model: nn.Module) -> Iterator[None]:
    """Compute in float within the block, the observers as they are: what calibration must see."""
    before = [module.fake_quant_enabled.clone() for module in _fake_quantizes(model)]
    model.apply(ao.disable_fake_quant)
    try:
        yield
    finally:
        for module, enabled in zip(_fake_quantizes(model), before, strict=True):
            module.fake_quant_enabled.copy_(enabled)


def switch(layer: nn.Module, weight: bool, activation: bool) -> None:
    """Quantize (simulated) the weights, or the output, of one layer of a prepared model, or leave them float."""
    layer.weight_fake_quant.enable_fake_quant(weight)  # type: ignore[operator, union-attr]
    layer.activation_post_process.enable_fake_quant(activation)  # type: ignore[operator, union-attr]


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


def _bare_observers(model: nn.Module) -> list[ObserverBase]:
    """The observers outside fake-quantize modules: of a model prepared for calibration."""
    inside = {id(fake_quantize.activation_post_process) for fake_quantize in _fake_quantizes(model)}
    return [module for module in model.modules() if isinstance(module, ObserverBase) and id(module) not in inside]


def _fake_quantizes(model: nn.Module) -> list[FakeQuantizeBase]:
    return [module for module in model.modules() if isinstance(module, FakeQuantizeBase)]
