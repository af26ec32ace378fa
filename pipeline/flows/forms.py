"""Loading a form of the model: the graph from the configuration, the numbers from a checkpoint."""

from __future__ import annotations

from pathlib import Path

from torch import nn

from pipeline import models
from pipeline.datasets.spec import DatasetInfo
from pipeline.flows import Form
from pipeline.flows import eager as quantization
from pipeline.flows.eager import twins
from pipeline.host.errors import UserError
from pipeline.host.files import load_tensors
from pipeline.settings.config import Config


def load(form: Form, checkpoint: Path, config: Config, info: DatasetInfo) -> nn.Module:
    """The model in `form`, on the CPU: the plain float network, or the quantizable twin's other forms.

    Reads `config.model`; `config.backend` for the forms `qat`, `int8` and `ptq_int8`; `config.fuse` for
    `fused` and `qat`.
    """
    if form in ("float", "float_finetuned"):
        model = models.build(config.model, info)
    else:
        backend = config.backend if form in ("qat", "int8", "ptq_int8") else None
        fuse_mode = config.fuse.mode if form in ("fused", "qat") else "train"
        model = quantization.rebuild(form, twins.build(config.model, info), backend, fuse_mode)
    _load_state(model, checkpoint)
    return model


def load_float_into_twin(checkpoint: Path, config: Config, info: DatasetInfo) -> nn.Module:
    """The quantizable twin with the float network's parameters, which have the same names."""
    twin = twins.build(config.model, info)
    _load_state(twin, checkpoint)
    return twin


def _load_state(model: nn.Module, checkpoint: Path) -> None:
    """Load a checkpoint of the store, where others may write too.

    Raises:
        UserError: when it is not one of this model.
    """
    state, again = load_tensors(checkpoint), f"remove {checkpoint.parent} and it is made again"
    try:
        model.load_state_dict(state)
    except (RuntimeError, TypeError, ValueError, KeyError, AttributeError) as error:
        first = " ".join(str(error).split())[:200]
        raise UserError(f"{checkpoint}: not a checkpoint of this model ({first}); {again}") from error
