"""The models: one file a family, each a float network; and the user's own, by its import path.

A family file ends with one declaration, `MODELS`, a tuple of `ModelSpec`. Adding a model is one such
file and one YAML in conf/model: the registry finds both by themselves. The eager flow needs a quantizable twin besides
(pipeline/flows/eager/twins). `model.target` names a network that is not of this project (docs/own-network.md).
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

import pipeline.host.torchvision_operators  # noqa: F401  (before any module here imports torchvision)
from pipeline.datasets.spec import DatasetInfo
from pipeline.host.declared import call_named, modules_of, run_users
from pipeline.host.errors import UserError, suggestion
from pipeline.models import libraries
from pipeline.settings.config import ModelConfig

# Called with in_channels, num_classes and stem: makes a network for images (N, in_channels, H, W) that returns logits
# (N, num_classes).
Builder = Callable[..., nn.Module]


@dataclass(frozen=True)
class ModelSpec:
    """One model: how to build it, and what it can take.

    Attributes:
        name: what `model.name` says.
        float_model: builds the float network.
        stems: allowed values of `model.stem`; empty when the stem is fixed.
        min_image_size: smallest square image in pixels.
        torchvision_weights: name of torchvision's weights enum for this network, if there is one.
    """

    name: str
    float_model: Builder
    stems: tuple[str, ...] = ()
    min_image_size: int = 1
    torchvision_weights: str | None = None


@functools.cache
def registry() -> dict[str, ModelSpec]:
    """Every declared model by its name."""
    return {spec.name: spec for module in modules_of(__name__) for spec in getattr(module, "MODELS", ())}


def module_of(config: ModelConfig) -> str:
    """The module that declares the model which `config` names, or has the user's own."""
    if config.target is not None:
        return config.target.partition(":")[0]
    if config.name in libraries.LIBRARIES:
        return libraries.__name__
    spec = find(config)
    return next(module.__name__ for module in modules_of(__name__) if spec in getattr(module, "MODELS", ()))


def check_model(config: ModelConfig, info: DatasetInfo, image_size: int) -> None:
    """Refuse an unknown model, a stem it does not have, images too small for it, or one that is no classifier of them.

    Raises:
        UserError: naming the key, the value and what is allowed.
        UserCodeError: when the user's own network raises.
    """
    spec = find(config)
    if config.stem is not None and config.stem not in spec.stems:
        allowed = suggestion(config.stem, spec.stems) if spec.stems else "allowed: null, its stem is fixed"
        raise UserError(f"model.stem={config.stem}: {allowed}")
    if config.target is not None or config.name in libraries.LIBRARIES:
        what = f"model.target={config.target}" if config.target is not None else f"model.arch={config.arch}"
        try_out(what, build(config, info), info, image_size)
    elif image_size < spec.min_image_size:
        raise UserError(
            f"dataset.image_size={image_size}: allowed: at least {spec.min_image_size} for model {spec.name}"
        )


def try_out(what: str, network: nn.Module, info: DatasetInfo, image_size: int) -> Tensor:
    """The logits (1, num_classes) that a network of the user's own gives of one image; all that is asked of it.

    Raises:
        UserError: `what` being the beginning of the line, when it gives something else.
        UserCodeError: when it raises.
    """
    image = torch.rand(1, info.channels, image_size, image_size, generator=torch.Generator().manual_seed(0))
    size = f"{info.channels} × {image_size} × {image_size}"
    with torch.inference_mode():
        logits = run_users(f"{what}: its forward, on one image of {size}", lambda: network.eval()(image))
    if not isinstance(logits, Tensor):
        raise UserError(
            f"{what}: what it returns is of type {type(logits).__name__}; allowed: one tensor, the logits (N, classes)"
        )
    if tuple(logits.shape) != (1, info.num_classes):
        raise UserError(
            f"{what}: of one image of {size} it returns a tensor {tuple(logits.shape)}; "
            f"allowed: (1, {info.num_classes}), a logit for each class, as when it takes num_classes"
        )
    return logits


def find(config: ModelConfig) -> ModelSpec:
    """The declared model that `config` names, or the user's own.

    Raises:
        UserError: when there is none, or what is set goes with the other kind alone.
    """
    models = registry()
    if config.target is not None:
        if config.name in models and not re.search(rf"[:.]{config.name}$", config.target):
            raise UserError(
                f"model.target={config.target}: model.name={config.name} is one of ours; allowed: model=own"
            )
        return ModelSpec(config.name, own_builder("model.target", config.target, config))
    if config.name in libraries.LIBRARIES:
        return ModelSpec(config.name, libraries.builder_of(config.name, config.arch, config.kwargs))
    for key, value in (
        ("arch", config.arch),
        ("quantizable_target", config.quantizable_target),
        ("kwargs", config.kwargs),
    ):
        if value:
            with_what = "model=torchvision or model=timm" if key == "arch" else "model.target"
            raise UserError(f"model.{key}={value}: allowed: with {with_what}")
    if config.name not in models:
        raise UserError(
            f"model.name={config.name}: {suggestion(config.name, [*sorted(models), *libraries.LIBRARIES])}; "
            "or model.target=package.module:name"
        )
    return models[config.name]


def own_builder(key: str, path: str, config: ModelConfig) -> Builder:
    """What builds the user's own network under `path`, which `key` names."""
    return functools.partial(_own, key, path, config.kwargs)


def _own(
    key: str, path: str, kwargs: Mapping[str, Any], *, in_channels: int, num_classes: int, stem: str | None
) -> nn.Module:
    network = call_named(key, path, {"num_classes": num_classes, "in_channels": in_channels}, kwargs)
    if not isinstance(network, nn.Module):
        raise UserError(f"{key}={path}: what it returns is of type {type(network).__name__}; allowed: torch.nn.Module")
    return network


def build(config: ModelConfig, info: DatasetInfo) -> nn.Module:
    """The float network, freshly initialized."""
    return call(find(config).float_model, config, info)


def call(builder: Builder, config: ModelConfig, info: DatasetInfo) -> nn.Module:
    """What a builder makes for the images and classes of a data set."""
    return builder(in_channels=info.channels, num_classes=info.num_classes, stem=config.stem)
