"""Runs that are equal but for the seed, in one row: how far a result is the method's, and how far luck.

The spread over seeds is that of training again, on the same test images; the interval of an accuracy is that of
other test images. Neither contains the other.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import pandas as pd

from pipeline.reports.comparison.table import Comparison

# What draws a run's random choices, of which QAT may have its own.
SEEDS = ("seed", "qat.seed")


@dataclass(frozen=True)
class Quantity:
    """What is summed up over seeds: the column of the comparison, its heading, and its name among a run's metrics."""

    name: str
    heading: str
    metric: str

    def columns(self) -> tuple[str, str]:
        """The names of its mean and its standard deviation."""
        end = "_pct" if self.metric.endswith("_pct") else ""
        return tuple(f"{self.metric.removesuffix(end)}_{what}{end}" for what in ("mean", "std"))  # type: ignore[return-value]


QUANTITIES = (
    Quantity("val/int8_accuracy_pct", "int8 validation %", "val_int8_accuracy_pct"),
    Quantity("int8/accuracy_pct", "int8 test %", "int8_accuracy_pct"),
    Quantity("accuracy_drop_pct", "drop", "accuracy_drop_pct"),
    Quantity("fp32/accuracy_pct", "fp32 %", "fp32_accuracy_pct"),
    Quantity("fp32_finetuned/accuracy_pct", "fine-tuned %", "fp32_finetuned_accuracy_pct"),
    Quantity("accuracy_drop_vs_finetuned_pct", "drop, fine-tuned", "accuracy_drop_vs_finetuned_pct"),
    Quantity("ptq_int8/accuracy_pct", "PTQ %", "ptq_int8_accuracy_pct"),
    Quantity("qat_fake/accuracy_pct", "fake %", "qat_fake_accuracy_pct"),
    Quantity("speedup", "speedup", "speedup"),
)


@dataclass(frozen=True)
class OverSeeds:
    """Groups of runs that differ in their seed alone, in the order of the comparison.

    Attributes:
        frame: a row a group: the `varying` columns, `seeds` (how many), then the mean and the sample standard
            deviation (n - 1; NaN for one seed) of each quantity that any group has.
        varying: what differs between the groups.
        quantities: those that the frame has.
    """

    frame: pd.DataFrame
    varying: tuple[str, ...]
    quantities: tuple[Quantity, ...]

    def metrics(self) -> dict[str, float]:
        """The numbers of the only group as metrics; none where there are several."""
        if len(self.frame) != 1:
            return {}
        row = self.frame.iloc[0]
        names = ["seeds", *(name for quantity in self.quantities for name in quantity.columns())]
        return {f"over_seeds/{name}": float(row[name]) for name in names if math.isfinite(row[name])}


def over_seeds(comparison: Comparison) -> OverSeeds | None:
    """Sum the comparison up over seeds; None where no two runs differ in their seed alone.

    Runs of the same seed and settings count as one seed, with their mean. A quantity that some seed of a group
    lacks is left open for that group: its mean would be over other seeds than the rest of the row.
    """
    seeds_of_runs = [name for name in SEEDS if name in comparison.varying]
    if not seeds_of_runs:
        return None
    others = [name for name in comparison.varying if name not in SEEDS]
    found = tuple(quantity for quantity in QUANTITIES if comparison.frame[quantity.name].notna().any())
    rows = []
    for group in _groups(comparison.frame, others):
        seeds = group.groupby(seeds_of_runs, dropna=False)[[quantity.name for quantity in found]].mean()
        row = {**{name: group[name].iloc[0] for name in others}, "seeds": len(seeds)}
        for quantity in found:
            mean, deviation = quantity.columns()
            row[mean] = seeds[quantity.name].mean(skipna=False)
            row[deviation] = seeds[quantity.name].std(ddof=1, skipna=False)
        rows.append(row)
    if all(row["seeds"] == 1 for row in rows):
        return None
    return OverSeeds(pd.DataFrame(rows), tuple(others), found)


def _groups(frame: pd.DataFrame, others: list[str]) -> list[pd.DataFrame]:
    """The rows that agree in all of `others`, in the order in which the first of each stands."""
    if not others:
        return [frame]
    return [group for _, group in frame.groupby(others, sort=False, dropna=False)]
