"""The forms of a model, and the verbs that lead from one to the next.

Quantization-aware training: `float` → `fused` (Conv+BN+ReLU in one module, still trainable) → `qat`
(fake-quantize modules inserted) → `int8` (converted, runs on the CPU). Post-training quantization:
`float` → `ptq_int8`, with the BatchNorm folded, observers calibrated and the model converted at once.
`float_finetuned`, the float model trained on, is the control of QAT.
A checkpoint holds a `state_dict` alone; `rebuild` makes the graph of a form anew from the quantizable
twin, and the checkpoint is loaded into it.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Literal

import torch.ao.quantization as ao
from torch import nn

from pipeline.config import BackendConfig
from pipeline.quantization.engines import use_engine
from pipeline.quantization.fake_quantize import count_fake_quantize
from pipeline.quantization.qconfig import ptq_qconfig, qat_qconfig
from pipeline.quantization.vectorized import vectorize

Form = Literal["float", "float_finetuned", "fused", "qat", "int8", "ptq_int8"]


def fuse_modules(module: nn.Module, groups: Sequence[Sequence[str]], is_qat: bool) -> None:
    """Fuse each group of `module`'s children (Conv+BN, Conv+BN+ReLU, …) in place.

    With `is_qat` (the module in training mode) the BatchNorm is kept, trainable, beside its
    convolution; without (evaluation mode) it is folded into the weights for good.
    """
    fuse = ao.fuse_modules_qat if is_qat else ao.fuse_modules
    fuse(module, [list(group) for group in groups], inplace=True)


def prepare(fused: nn.Module, backend: BackendConfig) -> nn.Module:
    """Insert fake-quantize modules into a fused model, in place, for the backend's QAT qconfig."""
    fused.train()
    fused.qconfig = qat_qconfig(backend)  # type: ignore[assignment]
    ao.prepare_qat(fused, inplace=True)
    vectorize(fused)
    assert count_fake_quantize(fused) > 0, "prepare_qat inserted no fake-quantize module"
    return fused


def prepare_ptq(twin: nn.Module, backend: BackendConfig, observer: str | None = None) -> nn.Module:
    """Fold the BatchNorm of a twin and insert observers, in place, for the backend's post-training qconfig.

    The model is left in evaluation mode, ready for calibration; `observer` is that of the activations
    (None: the backend's default).
    """
    twin.eval()
    twin.fuse_model(is_qat=False)  # type: ignore[operator]
    twin.qconfig = ptq_qconfig(backend, observer)  # type: ignore[assignment]
    return ao.prepare(twin, inplace=True)


def convert(prepared: nn.Module, backend: BackendConfig) -> nn.Module:
    """Convert a prepared model to int8, in place, on the CPU, with the backend's engine set."""
    use_engine(backend)
    prepared.cpu().eval()
    return ao.convert(prepared, inplace=True)


def rebuild(form: Form, twin: nn.Module, backend: BackendConfig | None = None) -> nn.Module:
    """Turn a fresh quantizable twin into the graph of `form`, ready to load that form's `state_dict`.

    The twin keeps the float model's parameters, so `float` and `float_finetuned` return it as it is. The
    forms `qat`, `int8` and `ptq_int8` need the backend.
    """
    if form in ("float", "float_finetuned"):
        return twin
    if form in ("fused", "qat"):
        twin.train()
        twin.fuse_model(is_qat=True)  # type: ignore[operator]
        if form == "fused":
            return twin
    assert backend is not None, f"the form {form} depends on the backend"
    if form == "qat":
        return prepare(twin, backend)
    # Converted, both int8 forms have the same graph, whichever way and with whichever observers it was reached.
    with warnings.catch_warnings():
        # The observers have seen nothing yet: the state_dict that is loaded next brings the ranges.
        warnings.filterwarnings("ignore", message="must run observer before calling calculate_qparams")
        return convert(prepare_ptq(twin, backend), backend)
