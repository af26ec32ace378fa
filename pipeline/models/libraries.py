"""Any classifier of torchvision or timm, by the library's own name of it: `model=timm model.arch=…`.

Classes are the library's own argument; so are channels in timm. torchvision has none for channels: there the first
convolution is made anew where images are not RGB.
"""

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from torch import nn

from pipeline.host.declared import run_users
from pipeline.host.errors import UserError, nearest
from pipeline.host.files import how_to_install

# By the name that `model.name` says: all names of classifiers, and what builds one.
LIBRARIES: dict[str, tuple[Callable[[], Iterable[str]], Callable[..., nn.Module]]] = {}


def builder_of(library: str, arch: str | None, kwargs: Mapping[str, Any]) -> Callable[..., nn.Module]:
    """What builds `arch` of a library.

    Raises:
        UserError: when the library is not installed, or has no such network.
    """
    key = f"model.arch={arch}"
    if importlib.util.find_spec(library) is None:
        raise UserError(f"model.name={library}: it is not installed here; {how_to_install(library)} brings it")
    names, build = LIBRARIES[library]
    known = list(names())
    if arch is None:
        raise UserError(f"{key}: allowed: a classifier of {library}, such as {known[0]} or {known[-1]}")
    if arch not in known:
        close = nearest(arch, known)
        hint = f"; did you mean '{close}'?" if close else ""
        raise UserError(f"{key}: {library} has no such classifier among its {len(known)}{hint}")
    return functools.partial(_build, build, library, arch, kwargs)


def _build(
    build: Callable[..., nn.Module],
    library: str,
    arch: str,
    kwargs: Mapping[str, Any],
    *,
    in_channels: int,
    num_classes: int,
    stem: str | None,
) -> nn.Module:
    network: nn.Module = run_users(
        f"model.arch={arch}: {library}", lambda: build(arch, in_channels, num_classes, **kwargs)
    )
    return network


def _torchvision_names() -> Iterable[str]:
    import torchvision.models

    # Its detectors and such take other inputs, and its quantized ones are made for eager mode.
    return torchvision.models.list_models(module=torchvision.models)  # type: ignore[no-any-return]


def _torchvision(arch: str, in_channels: int, num_classes: int, **kwargs: Any) -> nn.Module:
    import torchvision.models

    network: nn.Module = torchvision.models.get_model(arch, weights=None, num_classes=num_classes, **kwargs)
    if in_channels != 3:
        _change_first_convolution(network, in_channels)
    return network


def _change_first_convolution(network: nn.Module, in_channels: int) -> None:
    for name, module in network.named_modules():
        if isinstance(module, nn.Conv2d):
            taken = {
                key: getattr(module, key) for key in ("kernel_size", "stride", "padding", "dilation", "padding_mode")
            }
            other = nn.Conv2d(in_channels, module.out_channels, bias=module.bias is not None, **taken)
            network.set_submodule(name, other)
            return


def _timm_names() -> Iterable[str]:
    import timm

    return timm.list_models()  # type: ignore[no-any-return]


def _timm(arch: str, in_channels: int, num_classes: int, **kwargs: Any) -> nn.Module:
    import timm

    network: nn.Module = timm.create_model(arch, in_chans=in_channels, num_classes=num_classes, **kwargs)
    return network


LIBRARIES |= {"torchvision": (_torchvision_names, _torchvision), "timm": (_timm_names, _timm)}
