"""Starting from trained float weights: a `state_dict` file, or a weight that torchvision knows by name."""

from __future__ import annotations

import sys
import urllib.error
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor, nn

from pipeline.config import ModelConfig
from pipeline.errors import UserError, suggestion
from pipeline.files import in_project, load_tensors, sha256
from pipeline.models import ModelSpec, find


def fingerprint(config: ModelConfig) -> str | None:
    """What identifies the weights in an artifact key: the file's hash, or torchvision's name of them.

    Raises:
        UserError: when the file does not exist or the name is not one of the model's weights.
    """
    if config.weights is None:
        return None
    path = _path(config.weights)
    return sha256(path) if path else _torchvision_weight(find(config), config.weights)


def load_into(model: nn.Module, config: ModelConfig) -> list[str]:
    """Load `model.weights` into a float model, adapted where channels or classes differ.

    A first convolution for RGB is summed over its channels for grey images (the same response to a
    grey picture); a classifier for other classes keeps its fresh initialization.

    Returns:
        the names of the parameters that kept their initialization.

    Raises:
        UserError: when the weights cannot be read or are not this network's.
    """
    assert config.weights is not None
    spec = find(config)
    path = _path(config.weights)
    loaded = _read(path) if path else _download(spec, config.weights)
    wanted = model.state_dict()
    # Files of older versions of torch do not count batches; nothing here reads that count.
    optional = {name for name in wanted if name.endswith(".num_batches_tracked")}
    strays = sorted((loaded.keys() ^ wanted.keys()) - optional)
    if strays:
        raise UserError(
            f"model.weights={config.weights}: not a state_dict of {spec.name}: "
            f"{len(strays)} keys differ, the first is '{strays[0]}'"
        )
    fresh = []
    for name, parameter in wanted.items():
        value = loaded.get(name, parameter)
        if value.ndim == 4 and parameter.ndim == 4 and value.shape[1] == 3 and parameter.shape[1] == 1:
            value = value.sum(dim=1, keepdim=True)
        if value.shape == parameter.shape:
            wanted[name] = value
        elif name.startswith(spec.classifier):
            fresh.append(name)
        else:
            raise UserError(
                f"model.weights={config.weights}: '{name}' has shape {tuple(value.shape)}, "
                f"{spec.name} needs {tuple(parameter.shape)}"
            )
    model.load_state_dict(wanted)
    return fresh


def _path(weights: str) -> Path | None:
    """The file that `weights` names, or None when it names a torchvision weight."""
    path = in_project(weights)
    if path.is_file():
        return path
    if path.suffix in (".pt", ".pth", ".bin") or "/" in weights:
        raise UserError(f"model.weights={weights}: no such file; allowed: a state_dict file or a torchvision weight")
    return None


def _read(path: Path) -> Mapping[str, Tensor]:
    allowed = "allowed: a file with one mapping of tensors by their names, as torch.save writes a state_dict"
    try:
        loaded = load_tensors(path)
    except UserError as error:
        raise UserError(f"model.weights={error}; {allowed}") from error
    named = isinstance(loaded, Mapping) and all(isinstance(name, str) for name in loaded)
    if not named or not all(isinstance(value, Tensor) for value in loaded.values()):
        raise UserError(f"model.weights={path}: not a state_dict; {allowed}")
    return loaded


def _torchvision_weight(spec: ModelSpec, name: str) -> str:
    """The full name, such as `ResNet18_Weights.IMAGENET1K_V1`, of a weight given with or without its enum."""
    if spec.torchvision_weights is None:
        raise UserError(f"model.weights={name}: no such file, and {spec.name} has no torchvision weights")
    members = _members(spec.torchvision_weights)
    member = name.removeprefix(f"{spec.torchvision_weights}.")
    if member not in members:
        raise UserError(f"model.weights={name}: no such file or torchvision weight; {suggestion(member, members)}")
    return f"{spec.torchvision_weights}.{member}"


def _members(enum_name: str) -> list[str]:
    import torchvision.models

    return list(getattr(torchvision.models, enum_name).__members__)


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
