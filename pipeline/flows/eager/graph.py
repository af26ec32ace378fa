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

import torch.ao.quantization as ao
from torch import nn

from pipeline.flows.contract import Form
from pipeline.flows.eager.engines import use_engine
from pipeline.flows.eager.fake_quantize import count_fake_quantize
from pipeline.flows.eager.layers import float_layers, keep_float
from pipeline.flows.eager.qconfig import ptq_qconfig, qat_qconfig, simulated_ptq_qconfig
from pipeline.flows.eager.vectorized import vectorize
from pipeline.settings.config import BackendConfig


def fuse(twin: nn.Module, mode: str) -> nn.Module:
    """Fuse a quantizable twin in place, in mode `train` (BatchNorm kept) or `eval` (folded)."""
    twin.train(mode == "train")
    twin.fuse_model(is_qat=mode == "train")  # type: ignore[operator]
    return twin


def prepare(fused: nn.Module, backend: BackendConfig) -> nn.Module:
    """Insert fake-quantize modules into a fused model, in place, for the backend's QAT qconfig.

    With `backend.fake_quantize=false` observers alone are inserted, and training knows nothing of int8.
    """
    fused.train()
    keep_float(fused, backend.skip_layers)
    fused.qconfig = qat_qconfig(backend)  # type: ignore[assignment]
    ao.prepare_qat(fused, inplace=True)
    vectorize(fused)
    if backend.fake_quantize:
        assert count_fake_quantize(fused) > 0, "prepare_qat inserted no fake-quantize module"
    return fused


def prepare_ptq(twin: nn.Module, backend: BackendConfig, observer: str | None = None) -> nn.Module:
    """Fold the BatchNorm of a twin and insert observers, in place, for the backend's post-training qconfig.

    The model is left in evaluation mode, ready for calibration; `observer` is that of the activations
    (None: the backend's default).
    """
    fuse(twin, "eval")
    keep_float(twin, backend.skip_layers)
    twin.qconfig = ptq_qconfig(backend, observer)  # type: ignore[assignment]
    return ao.prepare(twin, inplace=True)


def prepare_simulation(twin: nn.Module, backend: BackendConfig, observer: str | None = None) -> nn.Module:
    """As `prepare_ptq`, in place, with fake-quantize modules: int8 is simulated in float, switchable a layer.

    Left in evaluation mode: ranges are taken from calibration, nothing is trained.
    """
    fuse(twin, "eval").train()  # prepare_qat insists on training mode
    keep_float(twin, backend.skip_layers)
    twin.qconfig = simulated_ptq_qconfig(backend, observer)  # type: ignore[assignment]
    return ao.prepare_qat(twin, inplace=True).eval()


def convert(prepared: nn.Module, backend: BackendConfig) -> nn.Module:
    """Convert a prepared model to int8, in place, on the CPU, with the backend's engine set."""
    use_engine(backend)
    prepared.cpu().eval()
    for layer in float_layers(prepared):
        layer.fold_batch_norm()
    with warnings.catch_warnings():
        # Some observers never see anything, and rightly: those of additions that a block without a shortcut
        # does not compute, and all of a graph that is rebuilt, whose ranges come with its state_dict.
        warnings.filterwarnings("ignore", message="must run observer before calling calculate_qparams")
        return ao.convert(prepared, inplace=True)


def rebuild(form: Form, twin: nn.Module, backend: BackendConfig | None = None, fuse_mode: str = "train") -> nn.Module:
    """Turn a fresh quantizable twin into the graph of `form`, ready to load that form's `state_dict`.

    The twin keeps the float model's parameters, so `float` and `float_finetuned` return it as it is. The
    forms `qat`, `int8` and `ptq_int8` need the backend; `fused` and `qat` depend on `fuse.mode`.
    """
    if form in ("float", "float_finetuned"):
        return twin
    if form in ("fused", "qat"):
        fuse(twin, fuse_mode)
        if form == "fused":
            return twin
    assert backend is not None, f"the form {form} depends on the backend"
    if form == "qat":
        return prepare(twin, backend)
    # Converted, both int8 forms have the same graph, whichever way and with whichever observers it was reached.
    return convert(prepare_ptq(twin, backend), backend)
