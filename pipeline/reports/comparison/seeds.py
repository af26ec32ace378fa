"""Runs that are equal but for the seed, in one row: how far a result is the method's, and how far luck.

The spread over seeds is that of training again, on the same test images; the interval of an accuracy is that of
other test images. Neither contains the other.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import pandas as pd

from pipeline.reports.comparison.table import Column, Comparison

# What draws a run's random choices, of which QAT may have its own.
SEEDS = ("seed", "qat.seed")


@dataclass(frozen=True)
class OverSeeds:
    """Groups of runs that differ in their seed alone, in the order of the comparison.

    Attributes:
        frame: a row a group: the `varying` columns, `seeds` (how many), then the mean and the sample standard
            deviation (n - 1; NaN for one seed) of each column that any group has.
        varying: what differs between the groups.
        columns: those columns, of the comparison.
    """

    frame: pd.DataFrame
    varying: tuple[str, ...]
    columns: tuple[Column, ...]

    def metrics(self) -> dict[str, float]:
        """The numbers of the only group as metrics; none where there are several."""
        if len(self.frame) != 1:
            return {}
        numbers = self.frame.drop(columns=list(self.varying)).iloc[0]
        return {f"over_seeds/{name}": float(value) for name, value in numbers.items() if math.isfinite(value)}


def mean_and_deviation(column: Column) -> tuple[str, str]:
    """The names of a column's mean and of its standard deviation over seeds."""
    name = column.name.replace("/", "_")
    end = "_pct" if name.endswith("_pct") else ""
    return f"{name.removesuffix(end)}_mean{end}", f"{name.removesuffix(end)}_std{end}"


def over_seeds(comparison: Comparison) -> OverSeeds | None:
    """Sum the comparison up over seeds; None where no two runs differ in their seed alone.

    Runs of the same seed and settings count as one seed, with their mean. A quantity that some seed of a group
    lacks is left open for that group: its mean would be over other seeds than the rest of the row.
    """
    frame = comparison.frame
    seeds_of_runs = [name for name in SEEDS if name in comparison.varying]
    if not seeds_of_runs:
        return None
    others = [name for name in comparison.varying if name not in SEEDS]
    columns = tuple(column for column in comparison.columns if column.over_seeds and frame[column.name].notna().any())
    rows = []
    # In the order in which the first run of each group stands.
    groups = [group for _, group in frame.groupby(others, sort=False, dropna=False)] if others else [frame]
    for group in groups:
        seeds = group.groupby(seeds_of_runs, dropna=False)[[column.name for column in columns]].mean()
        row = {**{name: group[name].iloc[0] for name in others}, "seeds": len(seeds)}
        for column in columns:
            mean, deviation = mean_and_deviation(column)
            row[mean] = seeds[column.name].mean(skipna=False)
            row[deviation] = seeds[column.name].std(ddof=1, skipna=False)
        rows.append(row)
    if all(row["seeds"] == 1 for row in rows):
        return None
    return OverSeeds(pd.DataFrame(rows), tuple(others), columns)
