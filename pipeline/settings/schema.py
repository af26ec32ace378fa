"""What the typed configuration allows: its keys, their types in words, and what is not of it."""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Iterable, Mapping
from typing import Any

from pipeline.host.errors import UserError, suggestion
from pipeline.settings.config import Config
from pipeline.settings.setting import TYPE_WORDS, words_of


def check_path(key: str, text: str, groups: Iterable[str]) -> None:
    """Refuse a dotted key that leads nowhere in the dataclasses."""
    section: Any = Config
    parts = key.split(".")
    for depth, part in enumerate(parts):
        fields = _field_types(section)
        if part not in fields:
            prefix = "".join(f"{parent}." for parent in parts[:depth])
            names = [prefix + name for name in fields] + ([] if prefix else [g for g in groups if g not in fields])
            # Below a setting there is nothing more: the setting itself is what can be written.
            names = names or [".".join(parts[:depth])]
            raise UserError(f"{text}: no such setting '{key}'; {suggestion(prefix + part, names)}")
        section = fields[part]
    if dataclasses.is_dataclass(section):
        raise UserError(f"{text}: '{key}' is a group of settings; {suggestion('', _field_types(section))}")


def refuse_strays(node: Mapping[Any, Any], schema: type = Config, prefix: str = "") -> None:
    """Refuse a key of a composed configuration that the dataclasses do not have."""
    fields = _field_types(schema)
    for name in node:
        if name not in fields:
            raise UserError(f"no such setting '{prefix}{name!s}'; {suggestion(str(name), fields)}")
        if dataclasses.is_dataclass(fields[str(name)]):
            refuse_strays(node[name], fields[str(name)], f"{prefix}{name}.")


def _field_types(schema: Any) -> dict[str, Any]:
    return typing.get_type_hints(schema) if dataclasses.is_dataclass(schema) else {}


def allowed_words(key: str) -> str | None:
    """What a setting allows, in words: its choices, or its type."""
    kind, choices = _declared(key)
    if choices:
        return ", ".join(choices)
    return words_of(kind) if kind in TYPE_WORDS or typing.get_args(kind) else None


def is_whole_number(key: str) -> bool:
    """Whether a setting, given by its dotted key, is a whole number (or null)."""
    return int in _alternatives(key)


def is_number(key: str) -> bool:
    """Whether a setting, given by its dotted key, is a number (or null)."""
    return bool({int, float} & _alternatives(key))


def _alternatives(key: str) -> set[Any]:
    kind, _ = _declared(key)
    return set(typing.get_args(kind)) if isinstance(kind, types.UnionType) else {kind}


def _declared(key: str) -> tuple[Any, tuple[str, ...]]:
    """Type and choices of a setting as the dataclasses declare them; no type for what they do not have."""
    kind: Any = Config
    choices: tuple[str, ...] = ()
    for part in key.split("[")[0].split("."):
        fields = dataclasses.fields(kind) if dataclasses.is_dataclass(kind) else ()
        spec = next((spec for spec in fields if spec.name == part), None)
        if spec is None:
            return None, ()
        choices = spec.metadata.get("choices", ())
        kind = _field_types(kind)[part]
    return kind, choices


def flatten(tree: Mapping[Any, Any], prefix: str = "") -> Iterable[tuple[str, Any]]:
    """Every setting by its dotted key."""
    for name, value in tree.items():
        if isinstance(value, dict):
            yield from flatten(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value
