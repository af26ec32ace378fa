"""The settings of `python -m pipeline.decide`: what int8 may cost, and what is tried, from cheap to dear."""

from __future__ import annotations

from dataclasses import dataclass, field

from pipeline.settings.setting import setting


@dataclass
class BudgetConfig:
    """What int8 may lose, and must gain; null: that does not matter.

    `max_drop_pct` is in points of accuracy, or in the unit of what else the task judges by. The speed-up and the
    latency are those of the stage `evaluate`, batch 1. `max_minutes` are those of quantizing: no rung begins after
    them.
    """

    max_drop_pct: float = setting(0.5, minimum=0, maximum=100)
    min_speedup: float | None = setting(None, above=0)
    max_latency_ms: float | None = setting(None, above=0)
    max_size_mb: float | None = setting(None, above=0)
    max_minutes: float | None = setting(None, above=0)


@dataclass
class LadderConfig:
    """The rungs by name, from cheap to dear: the overrides of each, of which `method` is one.

    In an override `{worst_layers}` stands for the names of so many layers that lose most, as the stage `sensitivity`
    ranks them, and `{longer_epochs}` for so many times `qat.epochs`.
    """

    rungs: dict[str, list[str]] = setting({})
    # Some of them alone, in this order; null: all.
    climb: list[str] | None = setting(None)
    worst_layers: int = setting(3, minimum=1, maximum=1000)
    longer: int = setting(3, minimum=2, maximum=1000)


@dataclass
class DecisionConfig:
    """A decision: the budget, and the ladder."""

    budget: BudgetConfig = field(default_factory=BudgetConfig)
    ladder: LadderConfig = field(default_factory=LadderConfig)
