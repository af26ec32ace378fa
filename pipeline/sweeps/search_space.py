"""What a search may vary, as Optuna's distributions, and what Optuna suggests, as overrides of a job.

A setting that is a whole number is searched as one, whatever the bounds look like: Hydra reads
`interval(1,5)` as two floats. Both bounds of an interval count; the stop of a range does not, as in Hydra.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from decimal import Decimal
from typing import TYPE_CHECKING, Any

from hydra.core.override_parser.types import IntervalSweep, Override, RangeSweep

from pipeline.host.errors import UserError
from pipeline.settings.schema import is_number, is_whole_number

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


def _extremes(distribution: Any) -> list[Any]:
    return list(getattr(distribution, "choices", None) or (distribution.low, distribution.high))


def read_search_space(overrides: Iterable[Override]) -> SearchSpace:
    """The space that a command line spans; of a key that is given twice, the last counts.

    Raises:
        UserError: for a sweep that cannot be searched, or when there is nothing to search.
    """
    last = {override.get_key_element(): override for override in overrides}
    distributions = {key: _distribution(override) for key, override in last.items() if override.is_sweep_override()}
    if not distributions:
        raise UserError(
            "hydra/sweeper=optuna: nothing to search; allowed: at least one key=interval(low,high), "
            "key=tag(log,interval(low,high)), key=range(start,stop,step) or key=choice(a,b)"
        )
    fixed = [f"{key}={last[key].get_value_element_as_str()}" for key in last if key not in distributions]
    return SearchSpace(distributions, fixed)


def _distribution(override: Override) -> BaseDistribution:
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    text, key, value = str(override.input_line), override.key_or_group, override.value()
    if override.is_choice_sweep():
        return CategoricalDistribution(list(dict.fromkeys(override.sweep_string_iterator())))
    if not is_number(key):
        raise UserError(f"{text}: '{key}' is not a number; allowed: choice(a,b)")
    log = False
    step: Decimal | None = None
    if isinstance(value, IntervalSweep) and value.tags <= {"log"}:
        low, high, log = Decimal(str(value.start)), Decimal(str(value.end)), "log" in value.tags
        if not (low < high and (high - low).is_finite()):
            raise UserError(f"{text}: allowed: interval(low,high) with low less than high")
        if log and low <= 0:
            raise UserError(f"{text}: allowed: bounds above 0 with tag(log,...)")
    elif isinstance(value, RangeSweep) and not value.tags:
        # In decimals, as typed: 0.1 is no sum of binary fractions.
        start, stop, stride = (Decimal(str(number)) for number in (value.start, value.stop, value.step))
        finite = start.is_finite() and stop.is_finite() and stride.is_finite()
        count = math.ceil((stop - start) / stride) if finite and stride else 0
        if count < 1:
            raise UserError(f"{text}: no number is in this range; allowed: range(start,stop,step), stop not included")
        low, high = sorted((start, start + (count - 1) * stride))
        step = abs(stride)
    else:
        raise UserError(f"{text}: allowed: no tag, or tag(log,interval(low,high))")
    if not is_whole_number(key):
        return FloatDistribution(float(low), float(high), log=log, step=None if step is None else float(step))
    if any(number != int(number) for number in (low, high, step or 1)):
        raise UserError(f"{text}: '{key}' is a whole number; allowed: whole bounds and steps")
    return IntDistribution(int(low), int(high), log=log, step=int(step or 1))
