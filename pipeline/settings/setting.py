"""A setting: a dataclass field with the range or the choices of its value, and the check of both."""

from __future__ import annotations

import copy
import dataclasses
import math
import operator
import typing
from collections.abc import Iterator
from dataclasses import field
from typing import Any

from omegaconf import MISSING

from pipeline.host.errors import UserError, suggestion
from pipeline.host.redaction import refuse_credentials, refuse_secret

_BOUNDS = {
    "minimum": ("at least", operator.ge),
    "above": ("more than", operator.gt),
    "maximum": ("at most", operator.le),
    "below": ("less than", operator.lt),
}


def setting(default: Any = MISSING, *, choices: tuple[str, ...] = (), in_key: bool = True, **bounds: float) -> Any:
    """A dataclass field with the range (`minimum`, `above`, `maximum`, `below`) or the choices of its value.

    `in_key=False` marks what cannot change a result (paths, worker counts): it stays out of the
    artifact keys.
    """
    assert bounds.keys() <= _BOUNDS.keys()
    metadata = {"bounds": bounds, "choices": choices, "in_key": in_key}
    if isinstance(default, list | dict):
        return field(default_factory=lambda: copy.copy(default), metadata=metadata)
    return field(default=default, metadata=metadata)


def declared(schema: type, prefix: str = "") -> Iterator[tuple[str, Any, dataclasses.Field[Any]]]:
    """Every setting of a dataclass, and of those in it: its dotted key, its type, and its field."""
    kinds = typing.get_type_hints(schema)
    for spec in dataclasses.fields(schema):
        key, kind = f"{prefix}{spec.name}", kinds[spec.name]
        if dataclasses.is_dataclass(kind):
            yield from declared(typing.cast(type, kind), f"{key}.")
        else:
            yield key, kind, spec


def check_settings(section: Any, prefix: str = "") -> None:
    """Refuse a setting that is out of its range, none of its choices, or an address with a password.

    Raises:
        UserError: for the first one, by `prefix` and its name.
    """
    for key, _, spec in declared(type(section)):
        value = operator.attrgetter(key)(section)
        choices, bounds = spec.metadata.get("choices", ()), spec.metadata.get("bounds", {})
        if choices and value is not None and value not in choices:
            raise UserError(f"{prefix}{key}={value}: {suggestion(str(value), choices)}")
        if isinstance(value, list) and not all(isinstance(one, str | int | float) for one in value):
            given = str(value).replace("'", "")  # OmegaConf lets a list in a list pass
            raise UserError(f"{prefix}{key}={given}: allowed: a list of single values")
        if value == [] and bounds:
            raise UserError(f"{prefix}{key}=[]: allowed: one value or more, each {_range_text(bounds)}")
        for one in value if isinstance(value, list) else [value]:
            _check_value(f"{prefix}{key}", one, bounds)
        if isinstance(value, dict):  # the user's own: what is no address with a password is allowed
            _check_own(f"{prefix}{key}", value)


def _check_own(key: str, values: Any) -> None:
    named = values.items() if isinstance(values, dict) else enumerate(values)
    for name, value in named:
        if isinstance(value, dict | list):
            _check_own(f"{key}.{name}", value)
        elif isinstance(value, str):
            refuse_credentials(f"{key}.{name}", value)
            if key.startswith("dataset."):  # the tokens of networks are no secrets
                refuse_secret(f"{key}.{name}")


def _check_value(key: str, value: Any, bounds: dict[str, float]) -> None:
    if isinstance(value, str):
        refuse_credentials(key, value)
    if isinstance(value, float) and not math.isfinite(value):
        raise UserError(f"{key}={value}: allowed: a finite number")
    if isinstance(value, int | float) and not all(_BOUNDS[name][1](value, bound) for name, bound in bounds.items()):
        raise UserError(f"{key}={value}: allowed: {_range_text(bounds)}")


def _range_text(bounds: dict[str, float]) -> str:
    return " and ".join(f"{_BOUNDS[name][0]} {bound:.10g}" for name, bound in bounds.items())
