"""Loading a form of the model: the graph from the configuration, the numbers from a checkpoint."""

from __future__ import annotations

from pathlib import Path

from torch import nn

from pipeline import models
from pipeline.datasets.spec import DatasetInfo
from pipeline.flows import catalogue
from pipeline.flows.contract import Form
from pipeline.host.errors import UserError
from pipeline.host.files import load_tensors
from pipeline.settings.config import Config

# What the metrics of a form begin with.
PREFIXES: dict[Form, str] = {
    "float": "fp32",
    "float_finetuned": "fp32_finetuned",
    "ptq_int8": "ptq_int8",
    "qat": "qat_fake",
    "int8": "int8",
}


def load(form: Form, checkpoint: Path, config: Config, info: DatasetInfo) -> nn.Module:
    """The model in `form`, on the CPU: the float network, or what the backend's flow makes of it.

    Reads `config.model`; `config.backend` and `config.fuse` for the flow's forms.
    """
    if form in ("float", "float_finetuned"):
        model = models.build(config.model, info)
    else:
        model = catalogue.find(config.backend).rebuild(form, config, info)
    _load_state(model, checkpoint)
    return model


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
