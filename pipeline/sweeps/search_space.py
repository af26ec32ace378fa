"""What a search may vary, as Optuna's distributions, and what Optuna suggests, as overrides of a job.

A setting that is a whole number is searched as one, whatever the bounds look like: Hydra reads
`interval(1,5)` as two floats. Both bounds of an interval count; the stop of a range does not, as in Hydra.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal
from typing import TYPE_CHECKING, Any

from pipeline.host.errors import UserError
from pipeline.settings.schema import is_whole_number

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution


@dataclass(frozen=True)
class SearchSpace:
    """The searched settings by name, and the overrides that stay as they were typed."""

    distributions: dict[str, BaseDistribution]
    fixed: list[str]

    def job(self, values: Mapping[str, Any]) -> list[str]:
        """The overrides of the job that has these values."""
        return [*self.fixed, *(f"{name}={plain(value)}" for name, value in values.items())]

    def corners(self) -> list[list[str]]:
        """Jobs that between them hold every bound and every choice: what to check before the first trial."""
        values = {name: _extremes(distribution) for name, distribution in self.distributions.items()}
        first = {name: allowed[0] for name, allowed in values.items()}
        others = [{**first, name: value} for name, allowed in values.items() for value in allowed[1:]]
        return [self.job(first), *map(self.job, others)]


def plain(value: Any) -> str:
    """A suggested value as it is typed: a float with six digits, so that what is shown reruns what ran."""
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def choice(values: list[str]) -> BaseDistribution:
    """One of some values, each as it is typed."""
    from optuna.distributions import CategoricalDistribution

    return CategoricalDistribution(list(dict.fromkeys(values)))


def interval(text: str, key: str, low: float, high: float, log: bool) -> BaseDistribution:
    """Every number from `low` to `high`, on a logarithmic scale with `log`.

    Raises:
        UserError: for bounds that make no interval of the setting `key`; `text` is what was typed.
    """
    from optuna.distributions import FloatDistribution, IntDistribution

    if not (low < high and math.isfinite(high - low)):
        raise UserError(f"{text}: allowed: interval(low,high) with low less than high")
    if log and low <= 0:
        raise UserError(f"{text}: allowed: bounds above 0 with tag(log,...)")
    if is_whole_number(key):
        return IntDistribution(_whole(text, key, low), _whole(text, key, high), log=log)
    return FloatDistribution(low, high, log=log)


def number_range(text: str, key: str, start: float, stop: float, step: float) -> BaseDistribution:
    """`start`, `start + step` and so on before `stop`.

    Raises:
        UserError: when there is no such number, or one does not suit the setting `key`; `text` is what was typed.
    """
    from optuna.distributions import FloatDistribution, IntDistribution

    # In decimals, as typed: 0.1 is no sum of binary fractions.
    first, end, stride = (Decimal(str(number)) for number in (start, stop, step))
    finite = first.is_finite() and end.is_finite() and stride.is_finite()
    count = math.ceil((end - first) / stride) if finite and stride else 0
    if count < 1:
        raise UserError(f"{text}: no number is in this range; allowed: range(start,stop,step), stop not included")
    low, high = sorted((first, first + (count - 1) * stride))
    if is_whole_number(key):
        return IntDistribution(_whole(text, key, low), _whole(text, key, high), step=_whole(text, key, abs(stride)))
    return FloatDistribution(float(low), float(high), step=float(abs(stride)))


def _whole(text: str, key: str, number: float | Decimal) -> int:
    if number != int(number):
        raise UserError(f"{text}: '{key}' is a whole number; allowed: whole bounds and steps")
    return int(number)


def _extremes(distribution: Any) -> list[Any]:
    return list(getattr(distribution, "choices", None) or (distribution.low, distribution.high))
