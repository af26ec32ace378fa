"""The models: one file a family, each a float network.

A family file ends with one declaration, `MODELS`, a tuple of `ModelSpec`. Adding a model is one such
file and one YAML in conf/model: the registry finds both by themselves. The eager flow needs a quantizable twin besides
(pipeline/flows/eager/twins).
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass

from torch import nn

import pipeline.host.torchvision_operators  # noqa: F401  (before any module here imports torchvision)
from pipeline.datasets.spec import DatasetInfo
from pipeline.host.declared import modules_of
from pipeline.host.errors import UserError, suggestion
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
        classifier: prefix of the parameters that depend on the number of classes.
        torchvision_weights: name of torchvision's weights enum for this network, if there is one.
    """

    name: str
    float_model: Builder
    stems: tuple[str, ...]
    min_image_size: int
    classifier: str
    torchvision_weights: str | None = None


@functools.cache
def registry() -> dict[str, ModelSpec]:
    """Every declared model by its name."""
    return {spec.name: spec for module in modules_of(__name__) for spec in getattr(module, "MODELS", ())}


def module_of(config: ModelConfig) -> str:
    """The module that declares the model which `config` names."""
    spec = find(config)
    return next(module.__name__ for module in modules_of(__name__) if spec in getattr(module, "MODELS", ()))


def check_model(config: ModelConfig, image_size: int) -> None:
    """Refuse an unknown model, a stem it does not have, or images too small for it.

    Raises:
        UserError: naming the key, the value and what is allowed.
    """
    spec = find(config)
    if config.stem is not None and config.stem not in spec.stems:
        allowed = suggestion(config.stem, spec.stems) if spec.stems else "allowed: null, its stem is fixed"
        raise UserError(f"model.stem={config.stem}: {allowed}")
    if image_size < spec.min_image_size:
        raise UserError(
            f"dataset.image_size={image_size}: allowed: at least {spec.min_image_size} for model {spec.name}"
        )


def find(config: ModelConfig) -> ModelSpec:
    """The declared model that `config` names.

    Raises:
        UserError: when there is none.
    """
    models = registry()
    if config.name not in models:
        raise UserError(f"model.name={config.name}: {suggestion(config.name, sorted(models))}")
    return models[config.name]


def build(config: ModelConfig, info: DatasetInfo) -> nn.Module:
    """The float network, freshly initialized."""
    return call(find(config).float_model, config, info)


def call(builder: Builder, config: ModelConfig, info: DatasetInfo) -> nn.Module:
    """What a builder makes for the images and classes of a data set."""
    return builder(in_channels=info.channels, num_classes=info.num_classes, stem=config.stem)
