"""A setting: a dataclass field with the range or the choices of its value, and the check of both."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from dataclasses import field
from typing import Any

from omegaconf import MISSING

from pipeline.errors import UserError, suggestion
from pipeline.redaction import refuse_credentials


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
    """Refuse a setting that is out of its range or none of its choices, or that has a password in an address.

    Raises:
        UserError: for the first one, by `prefix` and its name.
    """
    for key, value, spec in _settings(section, prefix):
        _check_setting(key, value, spec)


def _settings(section: Any, prefix: str) -> Iterator[tuple[str, Any, dataclasses.Field[Any]]]:
    for spec in dataclasses.fields(section):
        value = getattr(section, spec.name)
        if dataclasses.is_dataclass(value):
            yield from _settings(value, f"{prefix}{spec.name}.")
        else:
            yield f"{prefix}{spec.name}", value, spec


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
