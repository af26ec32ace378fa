"""The ranges that observers hold: moved to what is seen, and taken from a calibrated model."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.ao.quantization import FakeQuantizeBase, ObserverBase

from pipeline.flows.eager.straight_through import rows_of_block

_SYMMETRIC = (torch.per_tensor_symmetric, torch.per_channel_symmetric)


def extremes(values: Tensor, per_channel: bool) -> tuple[Tensor, Tensor]:
    """Minimum and maximum: of each channel (C), or of all values ()."""
    values = values.detach()
    if not per_channel:
        return torch.aminmax(values)
    rows = values.flatten(1)
    both = [(block.amin(1), block.amax(1)) for block in rows.split(rows_of_block(rows))]
    return torch.cat([low for low, _ in both]), torch.cat([high for _, high in both])


def observe(fake_quantize: Any, low: Tensor, high: Tensor) -> None:
    """Let the observer within see values of these extremes (), or (C) by channel, and take its scale and zero point."""
    observer = fake_quantize.activation_post_process
    observer(torch.stack((low, high), dim=-1))
    for buffer, value in zip(
        (fake_quantize.scale, fake_quantize.zero_point), observer.calculate_qparams(), strict=True
    ):
        buffer.resize_(value.shape).copy_(value)


def take_ranges(prepared: nn.Module, calibrated: nn.Module) -> None:
    """Set the ranges of `prepared` (by `prepare`) to those of `calibrated` (by `prepare_ptq`): both then convert alike.

    Both are of one network, so that a layer has one name in both. The observers of `prepared` have seen nothing yet,
    and go by minima and maxima, not by a histogram. Weights are taken with the BatchNorm folded: folded otherwise, by
    rounding alone, their extremes would fall to the other side of a level.
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
            observe(module, *extremes(weighted.weight, bool(module.is_per_channel)))
        elif name in observers and _has_seen(observers[name]):
            # A histogram chooses a range narrower than what it has seen; scale and zero point say which.
            observe(module, *_range_of(module, *observers[name].calculate_qparams()))


def _has_seen(observer: Any) -> bool:
    """An addition that its block does not compute is never seen."""
    return bool(observer.min_val.isfinite().all()) and observer.min_val.numel() > 0


def _range_of(fake_quantize: Any, scale: Tensor, zero_point: Tensor) -> tuple[Tensor, Tensor]:
    """The extremes of which an observer makes this scale and zero point."""
    observer = fake_quantize.activation_post_process
    low, high = observer.quant_min, observer.quant_max
    if observer.qscheme in _SYMMETRIC:
        half = scale * (high - low) / 2
        return -half, half
    return (low - zero_point) * scale, (high - zero_point) * scale
