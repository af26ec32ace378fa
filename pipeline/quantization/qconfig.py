"""The qconfig: how activations and weights are observed, and with which numbers they are quantized."""

from __future__ import annotations

from typing import Any

import torch.ao.quantization as ao
from torch.ao.quantization import FakeQuantizeBase, QConfig
from torch.ao.quantization.observer import HistogramObserver, MinMaxObserver, MovingAverageMinMaxObserver

from pipeline.config import BackendConfig

_OBSERVERS: dict[str, Any] = {
    "moving_average": MovingAverageMinMaxObserver,
    "histogram": HistogramObserver,
    "min_max": MinMaxObserver,
}


def qat_qconfig(backend: BackendConfig) -> QConfig:
    """Fake-quantize modules for training."""
    return ao.get_default_qat_qconfig(backend.qconfig)


def ptq_qconfig(backend: BackendConfig, observer: str | None = None) -> QConfig:
    """Observers for calibration; `observer` is that of the activations (None: the backend's, a histogram)."""
    default = ao.get_default_qconfig(backend.qconfig)
    if observer is None:
        return default
    arguments = default.activation.p.keywords
    return QConfig(activation=_OBSERVERS[observer].with_args(**arguments), weight=default.weight)


def resolved_qconfig(backend: BackendConfig) -> dict[str, str]:
    """What the qconfig means in numbers: dtype, range and granularity of activations and weights."""
    qconfig = ao.get_default_qat_qconfig(backend.qconfig)
    return {
        role: _describe(getattr(qconfig, role)())  # instantiating resolves the partial's defaults
        for role in ("activation", "weight")
    }


def _describe(fake_quantize: FakeQuantizeBase) -> str:
    observer = fake_quantize.activation_post_process
    dtype = str(observer.dtype).removeprefix("torch.")
    scheme = str(observer.qscheme).removeprefix("torch.")
    low, high = fake_quantize.quant_min, fake_quantize.quant_max
    return f"{dtype} [{low}, {high}] {scheme} {type(observer).__name__}"
