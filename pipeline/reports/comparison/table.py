"""What runs have in common, what differs between them, and which of them to ship: a sorted DataFrame.

Pure: from records to a table. The rule that sorts is part of the result, so that whoever
shows the table states it. What chooses is not what judges: the rule goes by the validation part, and the test part
is told of what it has put where.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

from pipeline.flows import FORMS
from pipeline.host.errors import UserError
from pipeline.reports.tracked_run import TrackedRun

MAX_DROP_PCT = 0.5
"""How many points of accuracy an int8 model may lose, unless told otherwise."""

# Measured before there were these, a run cannot be chosen.
VALIDATION = ("val/int8_accuracy_pct", "val/fp32_accuracy_pct", "val/accuracy_drop_pct")
REQUIRED = (
    *(f"{form}/{what}" for form in ("int8", "fp32") for what in ("accuracy_pct", "latency_ms", "size_mb")),
    "accuracy_drop_pct",
    "speedup",
    "compression",
)
# Where and how a run was measured; they differ between runs as its settings do.
_CONDITIONS = ("cpu", "torch_version")
# They change no result: where things lie, how fast data comes, what is evaluated besides, what a run is called.
_NOT_COMPARED = (
    *("outputs", "force", "stages", "evaluate.fake_quantized"),
    *("dataset.root", "dataset.mirror", "dataset.loading", "dataset.workers", "dataset.max_memory_gb"),
    *("tracking.enabled", "tracking.uri", "tracking.experiment", "tracking.run_name", "tracking.patience_s"),
)
# Said already by a column beside them, unless equal names stand for different ones.
_FOLLOWS = {"backend.qconfig": "backend.name", "backend.engine": "backend.name"}


@dataclass(frozen=True)
class Column:
    """A column of the frame, and how it is headed where it is shown; "" where it is not.

    Attributes:
        heading: in the page.
        short: in the terminal, which is narrow.
        over_seeds: in the table over seeds.
        digits: after the point.
    """

    name: str
    heading: str = ""
    short: str = ""
    over_seeds: str = ""
    digits: int = 2


COLUMNS = (
    Column("val/int8_accuracy_pct", "int8 validation %", "val %", "int8 validation %"),
    Column("val/accuracy_drop_pct", "drop on validation, points"),
    Column("int8/accuracy_pct", "int8 test %", "test %", "int8 test %"),
    Column("int8/accuracy_ci_low_pct"),
    Column("int8/accuracy_ci_high_pct"),
    Column("accuracy_drop_pct", "drop on test, points", "drop", "drop"),
    Column("accuracy_drop_ci_low_pct"),
    Column("accuracy_drop_ci_high_pct"),
    *(
        Column(f"{form.prefix}/accuracy_pct", f"{form.label} test %", f"{form.short} %", f"{form.short} %")
        for form in FORMS
        if form.is_control
    ),
    Column("accuracy_drop_vs_finetuned_pct", "drop from fine-tuned, points", over_seeds="drop, tuned"),
    Column("int8/latency_ms", "int8 latency ms", "int8 ms"),
    Column("int8/latency_p90_ms", "int8 p90 ms"),
    Column("speedup", "speedup ×", "speedup ×", "speedup ×"),
    Column("int8/size_mb", "int8 size MB", "int8 MB"),
    Column("compression", "compression ×", "smaller ×"),
    Column("fp32/accuracy_pct", "fp32 test %", over_seeds="fp32 %"),
    Column("fp32/accuracy_ci_low_pct"),
    Column("fp32/accuracy_ci_high_pct"),
    Column("fp32/latency_ms", "fp32 latency ms"),
    Column("fp32/latency_p90_ms"),
    Column("fp32/size_mb", "fp32 size MB"),
    Column("mcnemar_p", "McNemar p", digits=4),
    Column("val/fp32_accuracy_pct"),
    Column("val/images"),
    Column("test_images"),
)
_OWN = {"run", "run_id", "within_max_drop", "on_front", *(column.name for column in COLUMNS)}


@dataclass(frozen=True)
class Comparison:
    """Finished runs side by side, the one to ship first.

    Attributes:
        frame: a row a run: the `varying` columns, `run`, those of `COLUMNS`, `within_max_drop`, `on_front`, `run_id`.
        varying: what differs between the runs: settings, and the conditions of the measurement.
        shared: what is equal in all of them.
        max_drop_pct: points of accuracy that an int8 model may lose.
        left_out: how many runs are not compared, by the reason.
    """

    frame: pd.DataFrame
    varying: tuple[str, ...]
    shared: Mapping[str, str]
    max_drop_pct: float
    left_out: Mapping[str, int]

    @property
    def rule(self) -> str:
        """The rule of the order, in one sentence."""
        return (
            f"Sorted by the validation part: runs that lose at most {self.max_drop_pct:g} points of accuracy to int8 "
            "first, the lowest int8 latency leading; then the others, the highest int8 accuracy leading. The test part "
            "chooses nothing."
        )

    @property
    def counted(self) -> str:
        """How many runs are compared and how many are not, in one line."""
        compared = f"{len(self.frame)} run{'s' if len(self.frame) > 1 else ''} compared"
        return f"{compared}; {_left_out_text(self.left_out)}" if self.left_out else compared

    @property
    def told_apart(self) -> bool:
        """Whether what differs tells every run from the others, so that a name only repeats it."""
        return bool(self.varying) and not self.frame.duplicated(list(self.varying)).any()

    def parameter(self, name: str) -> list[str | None]:
        """A setting's value in each row, whether it differs or not; None where a run has none."""
        if name in self.varying:
            return [None if pd.isna(value) else str(value) for value in self.frame[name]]
        return [self.shared.get(name)] * len(self.frame)


def compare(runs: Sequence[TrackedRun], max_drop_pct: float = MAX_DROP_PCT) -> Comparison:
    """Put the runs that finished with all their metrics side by side; of those with one result, the first alone.

    Args:
        runs: the newest first, as `read_runs` gives them.
        max_drop_pct: points of accuracy that an int8 model may lose.

    Raises:
        UserError: when none of them did.
    """
    reasons = _why_left_out(runs)
    left_out = Counter(reason for reason in reasons if reason)
    compared = [run for run, reason in zip(runs, reasons, strict=True) if reason is None]
    if not compared:
        raise UserError(f"there is nothing to compare: {_left_out_text(left_out) if left_out else 'no run was found'}")
    settings = pd.DataFrame([_settings(run) for run in compared])
    differing = [str(name) for name in settings if settings[name].nunique(dropna=False) > 1]
    varying = [name for name in differing if not _follows(settings, name)]
    shared = {str(name): settings[name].iloc[0] for name in settings if name not in differing}
    numbers = pd.DataFrame([_numbers(run, max_drop_pct) for run in compared])
    frame = pd.concat([settings[varying].apply(_as_numbers), numbers], axis="columns")
    # Of all models, the fp32 ones among them.
    latency = np.concatenate([frame["int8/latency_ms"], frame["fp32/latency_ms"]])
    accuracy = np.concatenate([frame["val/int8_accuracy_pct"], frame["val/fp32_accuracy_pct"]])
    frame["on_front"] = pareto_front(latency, accuracy)[: len(frame)]
    frame["run_id"] = [run.run_id for run in compared]
    frame = frame.loc[_order(frame)].reset_index(drop=True)
    return Comparison(frame, tuple(varying), shared, max_drop_pct, left_out)


def pareto_front(latency_ms: ArrayLike, accuracy_pct: ArrayLike) -> np.ndarray:
    """Which points no other one beats, bool (N): none is as fast and as accurate, and better in one of the two."""
    latency, accuracy = np.asarray(latency_ms), np.asarray(accuracy_pct)
    no_worse = (latency <= latency[:, None]) & (accuracy >= accuracy[:, None])
    better = (latency < latency[:, None]) | (accuracy > accuracy[:, None])
    return np.asarray(~(no_worse & better).any(axis=1))


def _why_left_out(runs: Sequence[TrackedRun]) -> list[str | None]:
    """A reason for each run that is not compared; one is that an earlier one in the list has its very artifacts."""
    reasons: list[str | None] = []
    seen = set()
    for run in runs:
        artifacts = frozenset(item for item in run.tags.items() if item[0].startswith("artifact."))
        reason = None
        if run.status != "FINISHED":
            reason = run.status.lower()
        elif not all(math.isfinite(run.metrics.get(name, math.nan)) for name in REQUIRED):
            reason = "without all metrics"
        elif not all(math.isfinite(run.metrics.get(name, math.nan)) for name in VALIDATION):
            reason = "without val/ metrics: run again"
        elif artifacts in seen:
            reason = "repeated"
        elif artifacts:
            seen.add(artifacts)
        reasons.append(reason)
    return reasons


def _left_out_text(left_out: Mapping[str, int]) -> str:
    reasons = ", ".join(f"{count} {reason}" for reason, count in sorted(left_out.items()))
    return f"{sum(left_out.values())} left out ({reasons})"


def _settings(run: TrackedRun) -> dict[str, str]:
    settings = {name: value for name, value in run.parameters.items() if name not in _NOT_COMPARED}
    settings |= {name: run.tags[name] for name in _CONDITIONS if name in run.tags}
    return {f"{name} (parameter)" if name in _OWN else name: value for name, value in settings.items()}


def _follows(settings: pd.DataFrame, name: str) -> bool:
    leader = _FOLLOWS.get(name)
    return leader in settings and bool((settings.groupby(leader, dropna=False)[name].nunique(dropna=False) == 1).all())


def _numbers(run: TrackedRun, max_drop_pct: float) -> dict[str, object]:
    found = run.metrics
    # 98.8 - 98.3 is a little more than 0.5 in floating point.
    within = round(found["val/accuracy_drop_pct"], 9) <= max_drop_pct
    # A model that always names the largest class loses nothing against another that does.
    within = within and not found["val/int8_accuracy_pct"] <= found.get("val/largest_class_pct", math.nan)
    return {"run": run.name, **{c.name: found.get(c.name, math.nan) for c in COLUMNS}, "within_max_drop": within}


def _as_numbers(column: pd.Series) -> pd.Series:
    """A setting's column as numbers where all of its values are, so that 10 comes after 2."""
    numbers = pd.to_numeric(column, errors="coerce")
    return numbers if numbers.notna().all() else column


def _order(frame: pd.DataFrame) -> pd.Index:
    """The rows by the rule; ties by latency or accuracy, whichever has not been asked, then size, name and id."""
    within = frame["within_max_drop"].astype(bool)
    latency, accuracy = frame["int8/latency_ms"], -frame["val/int8_accuracy_pct"]
    keys = pd.DataFrame({"beyond": ~within, "first": latency.where(within, accuracy)})
    keys["second"] = accuracy.where(within, latency)
    keys = keys.join(frame[["int8/size_mb", "run", "run_id"]])
    return keys.sort_values(list(keys.columns)).index
