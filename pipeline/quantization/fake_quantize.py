"""Switching the observers and fake-quantize modules of a prepared model."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch.ao.nn.intrinsic.qat as nniqat
import torch.ao.quantization as ao
from torch import nn
from torch.ao.quantization import FakeQuantizeBase


def count_fake_quantize(model: nn.Module) -> int:
    """How many fake-quantize modules the model has; 0 means that it is not trained quantization-aware."""
    return len(_fake_quantizes(model))


@contextmanager
def observers_off(model: nn.Module) -> Iterator[None]:
    """Keep the ranges as they are within the block: evaluation mode alone does not stop the observers."""
    before = [module.observer_enabled.clone() for module in _fake_quantizes(model)]
    model.apply(ao.disable_observer)
    try:
        yield
    finally:
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


def freeze_observers(model: nn.Module) -> None:
    """Keep the quantization ranges as they are from here on."""
    model.apply(ao.disable_observer)


def freeze_batch_norm(model: nn.Module) -> None:
    """Normalize by the running statistics from here on, as the converted model will."""
    model.apply(nniqat.freeze_bn_stats)


def _fake_quantizes(model: nn.Module) -> list[FakeQuantizeBase]:
    return [module for module in model.modules() if isinstance(module, FakeQuantizeBase)]
