"""The ranges that observers hold, taken from a calibrated model."""

from __future__ import annotations

from typing import Any

from torch import nn
from torch.ao.quantization import FakeQuantizeBase, ObserverBase

from pipeline.flows.simulation import extremes, observe, range_of


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
            observe(module, *range_of(module, *observers[name].calculate_qparams()))


def _has_seen(observer: Any) -> bool:
    """An addition that its block does not compute is never seen."""
    return bool(observer.min_val.isfinite().all()) and observer.min_val.numel() > 0
