"""Compositions that differ in values alone share one: of the same files, chosen, read and merged once.

That is nearly all of Hydra's third of a second, which a sweep of a hundred jobs would pay a hundred times.
"""

from __future__ import annotations

import copy
import dataclasses
import functools
import typing
from pathlib import Path

import hydra
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from omegaconf import DictConfig

from pipeline.settings import typed
from pipeline.settings.config import Config

# What has no dot and yet is no group.
_SETTINGS = {name for name, kind in typing.get_type_hints(Config).items() if not dataclasses.is_dataclass(kind)}


def compose(folder: Path, name: str, overrides: list[str]) -> DictConfig:
    """As `hydra.compose(name, overrides)`, where Hydra is initialized with `folder`."""
    parsed = OverridesParser.create().parse_overrides(overrides)
    settings = _SETTINGS - {path.name for path in folder.iterdir()}  # `method` is a group, and sets the value too
    others = [text for one, text in zip(parsed, overrides, strict=True) if not _is_setting(one, settings)]
    files = sorted((str(path), path.stat().st_mtime_ns) for path in folder.rglob("*.yaml"))
    composed = copy.deepcopy(_composed(name, tuple(others), tuple(files), typed.config_dirs_content(others)))
    # What Hydra does too, once it has merged the files. It has no public way to do this alone.
    ConfigLoaderImpl._apply_overrides_to_config([one for one in parsed if _is_setting(one, settings)], composed)
    return composed


def _is_setting(override: Override, settings: set[str]) -> bool:
    """Whether it changes a value, and not which files are merged."""
    key = override.key_or_group
    named = "." in key or key in settings
    return named and not (key.startswith("hydra") or override.package or override.is_sweep_override())


@functools.lru_cache(maxsize=64)
def _composed(name: str, overrides: tuple[str, ...], files: object, more_files: object) -> DictConfig:
    """A composition is another as soon as a file is."""
    return hydra.compose(name, list(overrides))
