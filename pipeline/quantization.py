"""Eager-mode quantization: qconfig, fuse, prepare, convert, and the rebuilding of a form.

The only module that imports `torch.ao.quantization`, which is deprecated in favour of torchao's PT2E
but without a removal version: when it goes, this is the room to refurnish.

A model takes four forms, each the input of the next: `float` → `fused` (Conv+BN+ReLU in one module,
still trainable) → `qat` (fake-quantize modules inserted) → `int8` (converted, runs on the CPU).
`float_finetuned` and `ptq_int8` are the controls: the float model trained on, and quantized without training. A
checkpoint holds a `state_dict` alone; `rebuild` makes the graph of a form anew from the quantizable
twin, and the checkpoint is loaded into it.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Literal

import torch
import torch.ao.nn.intrinsic.qat as nniqat
import torch.ao.quantization as ao
from torch import nn
from torch.ao.nn.quantized import FloatFunctional
from torch.ao.quantization import DeQuantStub, FakeQuantizeBase, QuantStub

from pipeline.config import BackendConfig
from pipeline.errors import UserError, suggestion

# Re-exported for the quantizable twins, which must not import torch.ao themselves.
__all__ = ["DeQuantStub", "FloatFunctional", "QuantStub"]

Form = Literal["float", "float_finetuned", "fused", "qat", "int8", "ptq_int8"]

# Exactly the warnings that eager mode gives on correct use, each by its message.
_KNOWN_WARNINGS = (
    (DeprecationWarning, r"(?s).*torch\.ao\.quantization is deprecated"),
    (UserWarning, r"(?s).*reduce_range will be deprecated"),
    (UserWarning, r"torch\.quantize_per_tensor, torch\.quantize_per_channel and other quantized tensor creation"),
    (UserWarning, r"TypedStorage is deprecated"),  # torch.load's own, for quantized tensors
)
_QCONFIGS = ("fbgemm", "qnnpack", "x86", "onednn")


def silence_known_warnings() -> None:
    """Filter the warnings that eager-mode quantization gives on correct use, and no others."""
    for category, message in _KNOWN_WARNINGS:
        warnings.filterwarnings("ignore", message=message, category=category)


def supported_engines() -> list[str]:
    """The quantized engines that this build of torch has on this machine."""
    return [engine for engine in torch.backends.quantized.supported_engines if engine != "none"]


def check_backend(backend: BackendConfig) -> None:
    """Refuse a backend whose qconfig is unknown or whose engine this machine's torch does not have.

    Raises:
        UserError: naming the key, the value and what is supported here.
    """
    if backend.qconfig not in _QCONFIGS:
        raise UserError(f"backend.qconfig={backend.qconfig}: {suggestion(backend.qconfig, _QCONFIGS)}")
    engines = supported_engines()
    if backend.engine not in engines:
        raise UserError(
            f"backend.engine={backend.engine}: not supported by torch {torch.__version__} on this machine; "
            + suggestion(backend.engine, engines)
        )


def use_engine(backend: BackendConfig) -> None:
    """Set the engine, which is global to the process: before convert, before loading and before running."""
    torch.backends.quantized.engine = backend.engine


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
    fused.qconfig = ao.get_default_qat_qconfig(backend.qconfig)  # type: ignore[assignment]
    ao.prepare_qat(fused, inplace=True)
    assert count_fake_quantize(fused) > 0, "prepare_qat inserted no fake-quantize module"
    return fused


def convert(prepared: nn.Module, backend: BackendConfig) -> nn.Module:
    """Convert a prepared model to int8, in place, on the CPU, with the backend's engine set."""
    use_engine(backend)
    prepared.cpu().eval()
    return ao.convert(prepared, inplace=True)


def rebuild(form: Form, twin: nn.Module, backend: BackendConfig | None = None) -> nn.Module:
    """Turn a fresh quantizable twin into the graph of `form`, ready to load that form's `state_dict`.

    The twin keeps the float model's parameters, so `float` and `float_finetuned` return it as it is. The
    forms `qat` and `int8` need the backend.
    """
    if form in ("float", "float_finetuned"):
        return twin
    twin.train()
    twin.fuse_model(is_qat=True)  # type: ignore[operator]
    if form == "fused":
        return twin
    assert backend is not None, f"the form {form} depends on the backend"
    prepare(twin, backend)
    if form == "qat":
        return twin
    with warnings.catch_warnings():
        # The observers have seen nothing yet: the state_dict that is loaded next brings the ranges.
        warnings.filterwarnings("ignore", message="must run observer before calling calculate_qparams")
        return convert(twin, backend)


def count_fake_quantize(model: nn.Module) -> int:
    """How many fake-quantize modules the model has; 0 means that it is not trained quantization-aware."""
    return sum(isinstance(module, FakeQuantizeBase) for module in model.modules())


@contextmanager
def observers_off(model: nn.Module) -> Iterator[None]:
    """Keep the ranges as they are within the block: evaluation mode alone does not stop the observers."""
    fake_quantizes = [module for module in model.modules() if isinstance(module, FakeQuantizeBase)]
    before = [module.observer_enabled.clone() for module in fake_quantizes]
    model.apply(ao.disable_observer)
    try:
        yield
    finally:
        for module, enabled in zip(fake_quantizes, before, strict=True):
            module.observer_enabled.copy_(enabled)


def freeze_observers(model: nn.Module) -> None:
    """Keep the quantization ranges as they are from here on."""
    model.apply(ao.disable_observer)


def freeze_batch_norm(model: nn.Module) -> None:
    """Normalize by the running statistics from here on, as the converted model will."""
    model.apply(nniqat.freeze_bn_stats)
