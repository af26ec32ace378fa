"""Giving a model that is to be trained the ranges that post-training quantization chose."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.ao.quantization import FakeQuantizeBase, ObserverBase

_SYMMETRIC = (torch.per_tensor_symmetric, torch.per_channel_symmetric)


def take_ranges(prepared: nn.Module, calibrated: nn.Module) -> None:
    """Set the ranges of `prepared` (by `prepare`) to those of `calibrated` (by `prepare_ptq`): both then convert alike.

    Both are of one network, so that a layer has one name in both. The observers of `prepared` go by minima and maxima,
    not by a histogram. Weights are taken with the BatchNorm folded: folded otherwise, by rounding alone, their extremes
    would fall to the other side of a level.
    """
    observers = {name: module for name, module in calibrated.named_modules() if isinstance(module, ObserverBase)}
    for name, module in prepared.named_modules():
        parent, _, role = name.rpartition(".")
        if not isinstance(module, FakeQuantizeBase):
            continue
        if role == "weight_fake_quant":
            layer = calibrated.get_submodule(parent)
            # Fused with its ReLU, a layer is a sequence of both.
            weighted: Any = layer[0] if isinstance(layer, nn.Sequential) else layer
            _set_ends(module, *_extremes(weighted.weight, module))
        elif name in observers and _has_seen(observers[name]):
            # A histogram chooses a range narrower than what it has seen; scale and zero point say which.
            _set_ends(module, *_range_of(module, *observers[name].calculate_qparams()))


def _has_seen(observer: Any) -> bool:
    """An addition that its block does not compute is never seen."""
    return bool(observer.min_val.isfinite().all()) and observer.min_val.numel() > 0


def _extremes(weight: Tensor, fake_quantize: Any) -> tuple[Tensor, Tensor]:
    """Minimum and maximum: of each output channel (C), or of all values ()."""
    weight = weight.detach()
    if fake_quantize.is_per_channel:
        return torch.aminmax(weight.flatten(1), dim=1)
    return torch.aminmax(weight)


def _range_of(fake_quantize: Any, scale: Tensor, zero_point: Tensor) -> tuple[Tensor, Tensor]:
    """The extremes of which an observer makes this scale and zero point."""
    observer = fake_quantize.activation_post_process
    low, high = observer.quant_min, observer.quant_max
    if observer.qscheme in _SYMMETRIC:
        half = scale * (high - low) / 2
        return -half, half
    return (low - zero_point) * scale, (high - zero_point) * scale


def _set_ends(fake_quantize: Any, low: Tensor, high: Tensor) -> None:
    """Let the observer within, which has seen nothing yet, see exactly these extremes."""
    observer = fake_quantize.activation_post_process
    observer(torch.stack((low, high), dim=-1))
    scale, zero_point = observer.calculate_qparams()
    for buffer, value in ((fake_quantize.scale, scale), (fake_quantize.zero_point, zero_point)):
        buffer.resize_(value.shape)
        buffer.copy_(value)
