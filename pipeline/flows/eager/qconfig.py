"""The qconfig: how activations and weights are observed, and with which numbers they are quantized.

torch's default of the backend (`get_default_qat_qconfig`, `get_default_qconfig`), with what the settings
of `backend` override. Every combination of them runs on every engine.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.ao.quantization as ao
from torch.ao.quantization import FakeQuantize, FakeQuantizeBase, QConfig, fake_quantize, observer

from pipeline.flows.processor import has_vnni
from pipeline.settings.config import BackendConfig

_OBSERVERS: dict[str, Any] = {
    "moving_average": observer.MovingAverageMinMaxObserver,
    "histogram": observer.HistogramObserver,
    "min_max": observer.MinMaxObserver,
}
# The instruction without which an engine's kernel adds two products of 8 bits each in 16, and saturates.
# fbgemm, which x86 takes too where it is missing, looks for the AVX-512 one alone; qnnpack widens first.
_VNNI = {"fbgemm": ("avx512_vnni",), "x86": ("avx512_vnni",), "onednn": ("avx512_vnni", "avx_vnni")}


def qat_qconfig(backend: BackendConfig) -> QConfig:
    """Fake-quantize modules for training; observers alone with `backend.fake_quantize=false`."""
    if not backend.fake_quantize:
        return ptq_qconfig(backend)
    default = ao.get_default_qat_qconfig(backend.qconfig)
    arguments = _activation_arguments(backend, default)
    if backend.observer in (None, "moving_average"):
        activation = default.activation.with_args(**arguments)
    else:  # the default's module is made for a moving average alone
        arguments["observer"] = _OBSERVERS[backend.observer]
        activation = FakeQuantize.with_args(**arguments)
    weight = {
        None: default.weight,
        True: fake_quantize.default_fused_per_channel_wt_fake_quant,
        False: fake_quantize.default_fused_wt_fake_quant,
    }[backend.per_channel]
    return QConfig(activation=activation, weight=weight)


def ptq_qconfig(backend: BackendConfig, activation_observer: str | None = None) -> QConfig:
    """Observers for calibration; `activation_observer` stands before `backend.observer` and the default."""
    default = ao.get_default_qconfig(backend.qconfig)
    chosen = activation_observer or backend.observer or "histogram"
    activation = _OBSERVERS[chosen].with_args(**_activation_arguments(backend, default))
    weight = {
        None: default.weight,
        True: observer.default_per_channel_weight_observer,
        False: observer.default_weight_observer,
    }[backend.per_channel]
    return QConfig(activation=activation, weight=weight)


def simulated_ptq_qconfig(backend: BackendConfig, activation_observer: str | None = None) -> QConfig:
    """The post-training qconfig with each observer in a fake-quantize module, which can be switched."""
    real = ptq_qconfig(backend, activation_observer)
    return QConfig(
        activation=FakeQuantize.with_args(observer=real.activation), weight=FakeQuantize.with_args(observer=real.weight)
    )


def resolved_qconfig(backend: BackendConfig) -> dict[str, str]:
    """What the QAT qconfig means in numbers: dtype, range, granularity and observer of activations and weights."""
    return _in_words(qat_qconfig(backend))


def resolved_ptq_qconfig(backend: BackendConfig, activation_observer: str | None = None) -> dict[str, str]:
    """What the post-training qconfig means in numbers, as `resolved_qconfig`."""
    return _in_words(ptq_qconfig(backend, activation_observer))


def saturation_warning(backend: BackendConfig, capabilities: Mapping[str, Any] | None = None) -> str | None:
    """A line for activations of 8 bits on an engine that saturates with them on this processor, or None.

    Args:
        capabilities: of the processor, as `torch.cpu.get_capabilities` names them (None: this one's).
    """
    instructions = _VNNI.get(backend.engine, ())
    if not instructions or has_vnni(capabilities, instructions) or activation_levels(backend) <= 128:
        return None
    return (
        f"backend.engine={backend.engine} with activations of 8 bits saturates on this processor, which lacks VNNI "
        f"({' or '.join(instructions)}): it adds up products in 16 bits; int8 accuracy may fall: "
        "backend.activation_bits=7 avoids it"
    )


def saturation_elsewhere(backend: BackendConfig) -> str | None:
    """Why the kernels of other runtimes may compute otherwise on this processor, and the way out, or None."""
    if activation_levels(backend) <= 128 or has_vnni():
        return None
    return (
        "activations of 8 bits saturate in its kernels on this processor, which lacks VNNI: backend.activation_bits=7"
    )


def activation_levels(backend: BackendConfig) -> int:
    """How many values a quantized activation may have: 256, or 128 with a bit in reserve."""
    activation = ptq_qconfig(backend).activation()
    return int(activation.quant_max - activation.quant_min + 1)


def _activation_arguments(backend: BackendConfig, default: QConfig) -> dict[str, Any]:
    """The arguments of the default's activation observer, with what the settings change in them."""
    arguments: dict[str, Any] = dict(default.activation.p.keywords)
    if backend.activation_bits is not None:
        arguments["reduce_range"] = backend.activation_bits == 7
    if backend.symmetric:
        # Observers refuse reduce_range here, but a range of its own puts the zero point into its middle.
        high = 127 if arguments.get("reduce_range") else 255
        arguments |= {"quant_min": 0, "quant_max": high, "reduce_range": False, "qscheme": torch.per_tensor_symmetric}
    return arguments


def _in_words(qconfig: QConfig) -> dict[str, str]:
    words = {}
    for role in ("activation", "weight"):
        module = getattr(qconfig, role)()  # made, because that resolves the partial's defaults
        observed: Any = module.activation_post_process if isinstance(module, FakeQuantizeBase) else module
        dtype, scheme = (str(part).removeprefix("torch.") for part in (observed.dtype, observed.qscheme))
        words[role] = f"{dtype} [{module.quant_min}, {module.quant_max}] {scheme} {type(observed).__name__}"
    return words
