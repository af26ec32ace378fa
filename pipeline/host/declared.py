"""Packages whose modules each declare something: what is in one is found by looking, so that a new file is enough."""

from __future__ import annotations

import functools
import importlib
import pkgutil
from types import ModuleType


@functools.cache
def modules_of(package: str) -> tuple[ModuleType, ...]:
    """Every module of a package, given by its dotted name, imported."""
    path = importlib.import_module(package).__path__
    return tuple(importlib.import_module(f"{package}.{found.name}") for found in pkgutil.iter_modules(path))
