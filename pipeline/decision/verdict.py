"""What an interval says of a limit: kept, broken, or neither can be told."""

from __future__ import annotations

import enum
from collections.abc import Iterable
from dataclasses import dataclass


class Verdict(enum.StrEnum):
    """What a measurement says of a limit, in words."""

    PASSES = "passes"
    FAILS = "fails"
    UNKNOWN = "cannot be told"


@dataclass(frozen=True)
class Criterion:
    """One thing that was asked of a model, what came out, and `evidence`: the value, its interval and the limit."""

    name: str
    verdict: Verdict
    evidence: str

    @property
    def line(self) -> str:
        return f"{self.name}: {self.verdict}: {self.evidence}"


def judge(low: float, high: float, limit: float) -> Verdict:
    """Whether a value, whose interval is `low` to `high`, is at most `limit`; NaN, where no interval is known."""
    # Rounded: 64.01 - 63.51 is more than 0.5.
    if round(high, 6) <= limit:
        return Verdict.PASSES
    if round(low, 6) > limit:
        return Verdict.FAILS
    return Verdict.UNKNOWN


def together(criteria: Iterable[Criterion]) -> Verdict:
    """The verdict on all: one that fails decides, and then one that cannot be told."""
    verdicts = {criterion.verdict for criterion in criteria}
    return next((one for one in (Verdict.FAILS, Verdict.UNKNOWN) if one in verdicts), Verdict.PASSES)
