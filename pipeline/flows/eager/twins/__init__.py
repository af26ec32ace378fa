"""The quantizable twins, which eager mode needs: a float network's class with stubs, additions as modules and a
`fuse_model(is_qat)`, equal in its `state_dict`'s keys and, float, in every bit of its outputs.

A file ends with one declaration, `TWINS`: by the name of a model, what builds its twin.
"""

from __future__ import annotations

import functools
from types import ModuleType

from torch import nn

import pipeline.host.torchvision_operators  # noqa: F401  (before any module here imports torchvision)
from pipeline import models
from pipeline.datasets.spec import DatasetInfo
from pipeline.host.declared import modules_of
from pipeline.host.errors import UserError
from pipeline.models import Builder
from pipeline.settings.config import ModelConfig


@functools.cache
def registry() -> dict[str, Builder]:
    """What builds the twin of each model that has one, by the model's name."""
    return {name: builder for module in modules_of(__name__) for name, builder in _twins(module).items()}


def _twins(module: ModuleType) -> dict[str, Builder]:
    return getattr(module, "TWINS", {})


def module_of(config: ModelConfig) -> str:
    """The module that declares the twin of the model that `config` names.

    Raises:
        UserError: where there is none.
    """
    check(config)
    return next(module.__name__ for module in modules_of(__name__) if config.name in _twins(module))


def check(config: ModelConfig) -> None:
    """Refuse a model that has no twin.

    Raises:
        UserError: naming those that have one.
    """
    if config.name not in registry():
        raise UserError(
            f"model.name={config.name}: it has no quantizable twin, which backend.flow=eager needs; allowed with it: "
            + ", ".join(registry())
        )


def build(config: ModelConfig, info: DatasetInfo) -> nn.Module:
    """The quantizable twin, freshly initialized."""
    return models.call(registry()[config.name], config, info)
