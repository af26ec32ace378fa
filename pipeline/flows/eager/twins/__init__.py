"""The quantizable twins, which eager mode needs: a float network's class with stubs, additions as modules and a
`fuse_model(is_qat)`, equal in its `state_dict`'s keys and, float, in every bit of its outputs.

A file ends with one declaration, `TWINS`: by the name of a model, what builds its twin.
"""

from __future__ import annotations

import functools
from types import ModuleType

import torch
from torch import nn

import pipeline.host.torchvision_operators  # noqa: F401  (before any module here imports torchvision)
from pipeline import models
from pipeline.datasets.spec import DatasetInfo
from pipeline.host.declared import modules_of
from pipeline.host.errors import UserError
from pipeline.models import Builder
from pipeline.settings.config import ModelConfig

_HOW = "docs/own-network.md shows one"


@functools.cache
def registry() -> dict[str, Builder]:
    """What builds the twin of each model that has one, by the model's name."""
    return {name: builder for module in modules_of(__name__) for name, builder in _twins(module).items()}


def _twins(module: ModuleType) -> dict[str, Builder]:
    return getattr(module, "TWINS", {})


def module_of(config: ModelConfig) -> str:
    """The module that declares the twin of the model that `config` names, or has the user's own.

    Raises:
        UserError: where there is none.
    """
    _refuse_without(config)
    if config.quantizable_target is not None:
        return config.quantizable_target.partition(":")[0]
    return next(module.__name__ for module in modules_of(__name__) if config.name in _twins(module))


def check(config: ModelConfig, info: DatasetInfo, image_size: int) -> None:
    """Refuse a twin of the user's own that is not its network's; `module_of` and `build` refuse where there is none.

    Raises:
        UserError: saying what is allowed.
        UserCodeError: when the user's own twin raises.
    """
    if config.quantizable_target is None:
        return
    what = f"model.quantizable_target={config.quantizable_target}"
    network, twin = models.build(config, info), build(config, info)
    if not callable(getattr(twin, "fuse_model", None)):
        raise UserError(
            f"{what}: {type(twin).__name__} has no fuse_model(is_qat); allowed: a quantizable twin ({_HOW})"
        )
    differing = sorted(network.state_dict().keys() ^ twin.state_dict().keys())
    if differing:
        raise UserError(
            f"{what}: {len(differing)} names in its state_dict are not those of {config.target}, the first is "
            f"'{differing[0]}'; allowed: the same parameters by the same names"
        )
    try:
        twin.load_state_dict(network.state_dict())
    except RuntimeError as error:
        raise UserError(
            f"{what}: {' '.join(str(error).split())[:200]}; allowed: parameters of the same shapes"
        ) from error
    logits, expected = (models.try_out(what, one, info, image_size) for one in (twin, network))
    if not torch.allclose(logits, expected, rtol=1e-3, atol=1e-5):
        apart = (logits - expected).abs().max().item()
        raise UserError(
            f"{what}: with the same parameters its outputs differ from those of {config.target} by up to {apart:.3g}; "
            "allowed: the same float network"
        )


def _refuse_without(config: ModelConfig) -> None:
    if config.target is not None and config.quantizable_target is None:
        raise UserError(
            f"model.target={config.target}: backend.flow=eager needs its quantizable twin: set "
            f"model.quantizable_target=package.module:name ({_HOW}); or backend=openvino, which needs none"
        )
    if config.target is None and config.name not in registry():
        raise UserError(
            f"model.name={config.name}: it has no quantizable twin, which backend.flow=eager needs; allowed with it: "
            + f"{', '.join(registry())}; or backend=openvino, which needs none"
        )


def build(config: ModelConfig, info: DatasetInfo) -> nn.Module:
    """The quantizable twin, freshly initialized.

    Raises:
        UserError: where there is none.
    """
    _refuse_without(config)
    if config.quantizable_target is not None:
        builder = models.own_builder("model.quantizable_target", config.quantizable_target, config)
    else:
        builder = registry()[config.name]
    return models.call(builder, config, info)
