"""What the typed configuration allows, in words."""

from __future__ import annotations

import functools
import types
import typing
from collections.abc import Iterable, Mapping
from typing import Any

from pipeline.host.errors import UserError, suggestion
from pipeline.settings.config import Config
from pipeline.settings.decision import DecisionConfig
from pipeline.settings.setting import declared

_WORDS = {int: "a whole number", float: "a number", bool: "true or false", str: "text", type(None): "null"}


@functools.cache
def _settings() -> dict[str, tuple[Any, tuple[str, ...]]]:
    """Type and choices of every setting, by its dotted key."""
    return {
        key: (kind, spec.metadata["choices"])
        for schema in (Config, DecisionConfig)
        for key, kind, spec in declared(schema)
    }


def allowed_words(key: str) -> str | None:
    """What a setting, or a value of a list, allows: its choices, or its type; None for what there is not."""
    kind, choices = _settings().get(key.split("[")[0], (None, ()))
    return ", ".join(choices) or (_words_of(kind) if kind else None)


def settings_named(name: str) -> list[str]:
    """The settings that end with a name, in whatever section."""
    return [key for key in _settings() if key.endswith(f".{name}")]


def _words_of(kind: Any) -> str:
    """A declared type in words: `list[int] | None` is a list, each a whole number, or null."""
    if typing.get_origin(kind) is list:
        return f"a list, each {_WORDS[typing.get_args(kind)[0]]}"
    if typing.get_origin(kind) is dict:
        return "values by their names"
    return " or ".join(_words_of(choice) for choice in typing.get_args(kind)) or _WORDS[kind]


def is_whole_number(key: str) -> bool:
    """Whether a setting, given by its dotted key, is a whole number (or null)."""
    return int in _alternatives(key)


def is_number(key: str) -> bool:
    """Whether a setting, given by its dotted key, is a number (or null)."""
    return bool({int, float} & _alternatives(key))


def _alternatives(key: str) -> set[Any]:
    kind, _ = _settings().get(key, (None, ()))
    section, dot, _ = key.rpartition(".")
    if dot and kind is None:
        parts = key.split(".")
        above = (_settings().get(".".join(parts[:length])) for length in range(1, len(parts)))
        if any(found is not None and typing.get_origin(found[0]) is dict for found in above):
            return {float}  # of the user's own code; a whole one is typed, and read, as such
        names = [name for name in _settings() if name.startswith(f"{section}.")]
        raise UserError(f"{key}: no such setting; {suggestion(key, names or _settings())}")
    return set(typing.get_args(kind)) if isinstance(kind, types.UnionType) else {kind}


def flatten(tree: Mapping[Any, Any], prefix: str = "") -> Iterable[tuple[str, Any]]:
    """Every setting by its dotted key."""
    for name, value in tree.items():
        if isinstance(value, dict):
            yield from flatten(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value
