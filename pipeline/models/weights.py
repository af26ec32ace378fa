"""Starting from trained float weights: a file with a `state_dict`, or a weight that torchvision knows by name."""

from __future__ import annotations

import dataclasses
import functools
import sys
import urllib.error
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from pipeline import models
from pipeline.datasets.spec import DatasetInfo
from pipeline.host.errors import UserError, suggestion
from pipeline.host.files import in_project, sha256
from pipeline.models import ModelSpec, checkpoints, find
from pipeline.settings.config import ModelConfig


def fingerprint(config: ModelConfig) -> str | None:
    """What identifies the weights in an artifact key: the file's hash, or torchvision's name of them.

    Raises:
        UserError: when the file does not exist or the name is not one of the model's weights.
    """
    if config.weights is None:
        return None
    path = _path(config.weights)
    return sha256(path) if path else _torchvision_weight(find(config), config.weights)


class Loaded(NamedTuple):
    """What became of a file: the parameters that kept their initialization, and what is to be told of the rest."""

    fresh: list[str]
    told: str


def load_into(model: nn.Module, config: ModelConfig, info: DatasetInfo) -> Loaded:
    """Load `model.weights` into a float model for the data set of `info`, adapted where channels or classes differ.

    A first convolution for RGB is summed over its channels for grey images (the same response to a
    grey picture); a classifier for other classes keeps its fresh initialization.

    Raises:
        UserError: when the weights cannot be read, are not this network's, or are no numbers it could work with.
    """
    assert config.weights is not None
    spec = find(config)
    path = _path(config.weights)
    wanted = model.state_dict()
    # Files of older versions of torch do not count batches; nothing here reads that count.
    optional = {name for name in wanted if name.endswith(".num_batches_tracked")}
    if path:
        loaded, told = checkpoints.find(path, spec.name, set(wanted), optional)
    else:
        loaded, told = _download(spec, config.weights), ""
    of_classes = functools.cache(lambda: _shaped_by_classes(config, info))
    fresh, converted = [], set()
    for name, parameter in wanted.items():
        if name not in loaded:
            continue
        value = _number(config.weights, name, loaded[name], parameter.dtype)
        if value.dtype != loaded[name].dtype:
            converted.add(str(loaded[name].dtype).removeprefix("torch."))
        if value.ndim == 4 and parameter.ndim == 4 and value.shape[1] == 3 and parameter.shape[1] == 1:
            value = value.sum(dim=1, keepdim=True)
        if value.shape == parameter.shape:
            wanted[name] = value
        elif name in of_classes():
            fresh.append(name)
        else:
            raise UserError(
                f"model.weights={config.weights}: '{name}' has shape {tuple(value.shape)}, "
                f"{spec.name} needs {tuple(parameter.shape)}"
            )
    model.load_state_dict(wanted)
    if converted:
        told = "; ".join(filter(None, [told, f"{', '.join(sorted(converted))} becomes float32"]))
    return Loaded(fresh, told)


def _shaped_by_classes(config: ModelConfig, info: DatasetInfo) -> set[str]:
    """The parameters that have another shape for another number of classes."""
    more = dataclasses.replace(info, class_names=(*info.class_names, "one more"))
    one, other = (models.build(config, of).state_dict() for of in (info, more))
    return {name for name, value in one.items() if name in other and other[name].shape != value.shape}


def _number(weights: str, name: str, value: Tensor, wanted: torch.dtype) -> Tensor:
    """A tensor as the network has it: of its type, finite, and a variance that is none below 0.

    Raises:
        UserError: which names the parameter.
    """
    if not wanted.is_floating_point:
        return value
    if not value.is_floating_point() or value.layout != torch.strided or value.is_meta:
        kind = ", ".join(str(part).removeprefix("torch.") for part in (value.dtype, value.layout, value.device))
        raise UserError(f"model.weights={weights}: '{name}' is a tensor of {kind}; allowed: of floating-point numbers")
    value = value.to(wanted)  # first: what float64 holds may be infinite in float32
    strange = ~value.isfinite()
    if name.endswith("running_var"):
        strange |= value < 0
    if strange.any():
        first = value[strange].flatten()[0].item()
        allowed = "numbers of at least 0" if name.endswith("running_var") else "finite numbers"
        raise UserError(
            f"model.weights={weights}: '{name}' holds {first:g}: {int(strange.sum())} of its {value.numel()} values "
            f"are none that it could work with; allowed: {allowed}"
        )
    return value


def _path(weights: str) -> Path | None:
    """The file that `weights` names, or None when it names a torchvision weight."""
    path = in_project(weights)
    if path.is_file():
        return path
    if path.suffix in (".pt", ".pth", ".bin", ".ckpt", ".safetensors") or "/" in weights:
        raise UserError(f"model.weights={weights}: no such file; allowed: a state_dict file or a torchvision weight")
    return None


def _torchvision_weight(spec: ModelSpec, name: str) -> str:
    """The full name, such as `ResNet18_Weights.IMAGENET1K_V1`, of a weight given with or without its enum."""
    import torchvision.models

    if spec.torchvision_weights is None:
        raise UserError(f"model.weights={name}: no such file, and {spec.name} has no torchvision weights")
    members = list(getattr(torchvision.models, spec.torchvision_weights).__members__)
    member = name.removeprefix(f"{spec.torchvision_weights}.")
    if member not in members:
        raise UserError(f"model.weights={name}: no such file or torchvision weight; {suggestion(member, members)}")
    return f"{spec.torchvision_weights}.{member}"


def _download(spec: ModelSpec, name: str) -> Mapping[str, Tensor]:
    import torchvision.models

    weight = torchvision.models.get_weight(_torchvision_weight(spec, name))
    try:
        return weight.get_state_dict(progress=sys.stderr.isatty(), check_hash=True, weights_only=True)
    except (urllib.error.URLError, OSError, RuntimeError) as error:  # RuntimeError: another hash than stated
        raise UserError(
            f"model.weights={name}: could not be downloaded ({error}); "
            f"fetch {weight.url} elsewhere and give its path as model.weights"
        ) from error
