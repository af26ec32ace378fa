"""A setting: a dataclass field with the range or the choices of its value, and the check of both."""

from __future__ import annotations

import dataclasses
import math
import types
import typing
from collections.abc import Iterator
from dataclasses import field
from typing import Any

from omegaconf import MISSING

from pipeline.host.errors import UserError, suggestion
from pipeline.host.redaction import refuse_credentials

TYPE_WORDS = {int: "a whole number", float: "a number", bool: "true or false", str: "text", type(None): "null"}


def setting(
    default: Any = MISSING,
    *,
    minimum: float | None = None,
    above: float | None = None,
    maximum: float | None = None,
    below: float | None = None,
    choices: tuple[str, ...] = (),
    in_key: bool = True,
) -> Any:
    """A dataclass field with the range or the choices of its value.

    `in_key=False` marks what cannot change a result (paths, worker counts): it stays out of the
    artifact keys.
    """
    bounds = {"minimum": minimum, "above": above, "maximum": maximum, "below": below}
    metadata = {"bounds": bounds, "choices": choices, "in_key": in_key}
    if isinstance(default, list):
        return field(default_factory=lambda: list(default), metadata=metadata)
    return field(default=default, metadata=metadata)


def check_settings(section: Any, prefix: str = "") -> None:
    """Refuse a setting of another type than it declares, out of its range, none of its choices, or with a password.

    Raises:
        UserError: for the first one, by `prefix` and its name.
    """
    for key, value, kind, spec in _settings(section, prefix):
        if not _is_a(value, kind):  # OmegaConf sees to it, except where an interpolation leads to something else
            given = str(value).replace("'", "")
            raise UserError(f"{key}={given}: allowed: {words_of(kind)}")
        _check_setting(key, value, spec)


def _settings(section: Any, prefix: str) -> Iterator[tuple[str, Any, Any, dataclasses.Field[Any]]]:
    kinds = typing.get_type_hints(type(section))
    for spec in dataclasses.fields(section):
        value = getattr(section, spec.name)
        if dataclasses.is_dataclass(value) and dataclasses.is_dataclass(kinds[spec.name]):
            yield from _settings(value, f"{prefix}{spec.name}.")
        else:
            yield f"{prefix}{spec.name}", value, kinds[spec.name], spec


def words_of(kind: Any) -> str:
    """A declared type in words: `list[int] | None` is a list, each a whole number, or null."""
    if isinstance(kind, types.UnionType):
        return " or ".join(words_of(choice) for choice in typing.get_args(kind))
    if typing.get_origin(kind) is list:
        return f"a list, each {words_of(typing.get_args(kind)[0])}"
    return TYPE_WORDS.get(kind, "a group of settings")


def _is_a(value: Any, kind: Any) -> bool:
    if isinstance(kind, types.UnionType):
        return any(_is_a(value, choice) for choice in typing.get_args(kind))
    if typing.get_origin(kind) is list:
        return isinstance(value, list) and all(_is_a(one, typing.get_args(kind)[0]) for one in value)
    if kind in (int, float) and isinstance(value, bool):
        return False
    return isinstance(value, int | float if kind is float else typing.get_origin(kind) or kind)


def _check_setting(key: str, value: Any, spec: dataclasses.Field[Any]) -> None:
    for text in value if isinstance(value, list) else [value]:
        if isinstance(text, str):
            refuse_credentials(key, text)
    choices = spec.metadata.get("choices", ())
    if choices and value is not None and value not in choices:
        raise UserError(f"{key}={value}: {suggestion(str(value), choices)}")
    bounds = spec.metadata.get("bounds", {})
    if value == [] and any(bound is not None for bound in bounds.values()):
        raise UserError(f"{key}=[]: allowed: one value or more, each {_range_text(bounds)}")
    for number in value if isinstance(value, list) else [value]:
        if isinstance(number, float) and not math.isfinite(number):
            raise UserError(f"{key}={number}: allowed: a finite number")
        if isinstance(number, int | float) and not isinstance(number, bool) and not _within(number, bounds):
            raise UserError(f"{key}={number}: allowed: {_range_text(bounds)}")


def _within(number: float, bounds: dict[str, float | None]) -> bool:
    minimum, above, maximum, below = (bounds.get(name) for name in ("minimum", "above", "maximum", "below"))
    return (
        (minimum is None or number >= minimum)
        and (above is None or number > above)
        and (maximum is None or number <= maximum)
        and (below is None or number < below)
    )


def _plain(bound: float) -> str:
    return str(int(bound)) if bound == int(bound) else f"{bound:g}"


def _range_text(bounds: dict[str, float | None]) -> str:
    words = {"minimum": "at least", "above": "more than", "maximum": "at most", "below": "less than"}
    return " and ".join(f"{words[name]} {_plain(bound)}" for name, bound in bounds.items() if bound is not None)
