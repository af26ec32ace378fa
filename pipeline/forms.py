"""Loading a form of the model: the graph from the configuration, the numbers from a checkpoint."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from pipeline import models, quantization
from pipeline.config import Config
from pipeline.datasets.spec import DatasetInfo
from pipeline.quantization import Form

# What the metrics of a form begin with.
PREFIXES: dict[Form, str] = {
    "float": "fp32",
    "float_finetuned": "fp32_finetuned",
    "ptq_int8": "ptq_int8",
    "qat": "qat_fake",
    "int8": "int8",
}


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
        model = quantization.rebuild(form, models.build_twin(config.model, info), backend, fuse_mode)
    model.load_state_dict(torch.load(checkpoint, map_location="cpu", weights_only=True))
    return model


def load_float_into_twin(checkpoint: Path, config: Config, info: DatasetInfo) -> nn.Module:
    """The quantizable twin with the float network's parameters, which have the same names."""
    twin = models.build_twin(config.model, info)
    twin.load_state_dict(torch.load(checkpoint, map_location="cpu", weights_only=True))
    return twin
