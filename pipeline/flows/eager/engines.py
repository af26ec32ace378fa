"""What this machine runs int8 with, and the warnings of eager mode that mean nothing."""

from __future__ import annotations

import warnings

import torch

from pipeline.flows.processor import supported_engines
from pipeline.host.errors import UserError, suggestion
from pipeline.settings.config import BackendConfig

# Exactly the warnings that eager mode gives on correct use, each by its message.
_KNOWN_WARNINGS = (
    (DeprecationWarning, r"(?s).*torch\.ao\.quantization is deprecated"),
    (UserWarning, r"(?s).*reduce_range will be deprecated"),
    (UserWarning, r"torch\.quantize_per_tensor, torch\.quantize_per_channel and other quantized tensor creation"),
    (UserWarning, r"Default qconfig of oneDNN backend"),  # saturation_warning tells it, with the way out
    (UserWarning, r"TypedStorage is deprecated"),  # torch.load's own, for quantized tensors
)
_QCONFIGS = ("fbgemm", "qnnpack", "x86", "onednn")


def silence_known_warnings() -> None:
    """Filter the warnings that eager-mode quantization gives on correct use, and no others."""
    for category, message in _KNOWN_WARNINGS:
        warnings.filterwarnings("ignore", message=message, category=category)


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
