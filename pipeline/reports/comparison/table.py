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
from pipeline.tasks import ACCURACY, Metric

MAX_DROP_PCT = 0.5
"""How much of its metric an int8 model may lose, in points of a percentage, unless told otherwise."""

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


def columns_of(metric: Metric) -> tuple[Column, ...]:
    """The columns of runs that are judged by a metric."""
    unit, drop = metric.heading, metric.of("drop")
    return (
        Column(f"val/int8_{metric.name}", f"int8 validation {unit}", f"val {unit}", f"int8 validation {unit}"),
        Column(f"val/{drop}", f"drop on validation, {metric.step}"),
        Column(f"int8/{metric.name}", f"int8 test {unit}", f"test {unit}", f"int8 test {unit}"),
        Column(f"int8/{metric.of('ci_low')}"),
        Column(f"int8/{metric.of('ci_high')}"),
        Column(drop, f"drop on test, {metric.step}", "drop", "drop"),
        Column(metric.of("drop_ci_low")),
        Column(metric.of("drop_ci_high")),
        *(
            Column(f"{form.prefix}/{metric.name}", f"{form.label} test {unit}", short := f"{form.short} {unit}", short)
            for form in FORMS
            if form.is_control
        ),
        Column(metric.of("drop_vs_finetuned"), f"drop from fine-tuned, {metric.step}", over_seeds="drop, tuned"),
        Column("int8/latency_ms", "int8 latency ms", "int8 ms"),
        Column("int8/latency_p90_ms", "int8 p90 ms"),
        Column("speedup", "speedup ×", "speedup ×", "speedup ×"),
        Column("int8/size_mb", "int8 size MB", "int8 MB"),
        Column("compression", "compression ×", "smaller ×"),
        Column(f"fp32/{metric.name}", f"fp32 test {unit}", over_seeds=f"fp32 {unit}"),
        Column(f"fp32/{metric.of('ci_low')}"),
        Column(f"fp32/{metric.of('ci_high')}"),
        Column("fp32/latency_ms", "fp32 latency ms"),
        Column("fp32/latency_p90_ms"),
        Column("fp32/size_mb", "fp32 size MB"),
        Column(metric.test, "McNemar p" if metric.is_share else "sign-flip p", digits=4),
        Column(f"val/fp32_{metric.name}"),
        Column("val/images"),
        Column("test_images"),
    )


@dataclass(frozen=True)
class Comparison:
    """Finished runs side by side, the one to ship first.

    Attributes:
        frame: a row a run: the `varying` columns, `run`, `columns`, `within_max_drop`, `on_front`, `run_id`.
        varying: what differs between the runs: settings, and the conditions of the measurement.
        shared: what is equal in all of them.
        max_drop_pct: how much an int8 model may lose, in the unit of the metric.
        left_out: how many runs are not compared, by the reason.
        metric: by which all of them are judged.
    """

    frame: pd.DataFrame
    varying: tuple[str, ...]
    shared: Mapping[str, str]
    max_drop_pct: float
    left_out: Mapping[str, int]
    metric: Metric = ACCURACY

    @property
    def columns(self) -> tuple[Column, ...]:
        """The columns of `frame` with what came out."""
        return columns_of(self.metric)

    @property
    def rule(self) -> str:
        """The rule of the order, in one sentence."""
        return (
            f"Sorted by the validation part: runs that lose at most {self.max_drop_pct:g} {self.lost} to int8 first, "
            f"the lowest int8 latency leading; then the others, the {self.best} int8 {self.metric.label} leading. The "
            "test part chooses nothing."
        )

    @property
    def lost(self) -> str:
        """What a model may lose, in words."""
        return f"points of {self.metric.label}" if self.metric.unit == "pct" else self.metric.heading

    @property
    def best(self) -> str:
        """The end of the metric that leads."""
        return "highest" if self.metric.higher_is_better else "lowest"

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

    The newest that finished says by what they are judged.

    Args:
        runs: the newest first, as `read_runs` gives them.
        max_drop_pct: how much an int8 model may lose, in the unit of that.

    Raises:
        UserError: when none of them did.
    """
    metric = next((run.metric for run in runs if run.status == "FINISHED"), ACCURACY)
    reasons = _why_left_out(runs, metric)
    left_out = Counter(reason for reason in reasons if reason)
    compared = [run for run, reason in zip(runs, reasons, strict=True) if reason is None]
    if not compared:
        why = _left_out_text(left_out) if left_out else "no run was found"
        raise UserError(f"there is nothing to compare: {why}; allowed: finished runs with the stage evaluate")
    settings = pd.DataFrame([_settings(run) for run in compared])
    differing = [str(name) for name in settings if settings[name].nunique(dropna=False) > 1]
    varying = [name for name in differing if not _follows(settings, name)]
    shared = {str(name): settings[name].iloc[0] for name in settings if name not in differing}
    numbers = pd.DataFrame([_numbers(run, max_drop_pct, metric) for run in compared])
    frame = pd.concat([settings[varying].apply(_as_numbers), numbers], axis="columns")
    # Of all models, the fp32 ones among them.
    latency = np.concatenate([frame["int8/latency_ms"], frame["fp32/latency_ms"]])
    values = np.concatenate([frame[f"val/{form}_{metric.name}"] for form in ("int8", "fp32")])
    frame["on_front"] = pareto_front(latency, values, metric)[: len(frame)]
    frame["run_id"] = [run.run_id for run in compared]
    frame = frame.loc[_order(frame, metric)].reset_index(drop=True)
    return Comparison(frame, tuple(varying), shared, max_drop_pct, left_out, metric)


def pareto_front(latency_ms: ArrayLike, values: ArrayLike, metric: Metric = ACCURACY) -> np.ndarray:
    """Which points no other one beats, bool (N): none is as fast and as good, and better in one of the two."""
    latency, lost = np.asarray(latency_ms), metric.drop(0.0, np.asarray(values))
    no_worse = (latency <= latency[:, None]) & (lost <= lost[:, None])
    better = (latency < latency[:, None]) | (lost < lost[:, None])
    return np.asarray(~(no_worse & better).any(axis=1))


def _why_left_out(runs: Sequence[TrackedRun], metric: Metric) -> list[str | None]:
    """A reason for each run that is not compared; one is that an earlier one in the list has its very artifacts."""
    reasons: list[str | None] = []
    required = (
        *(f"{form}/{what}" for form in ("int8", "fp32") for what in (metric.name, "latency_ms", "size_mb")),
        *(metric.of("drop"), "speedup", "compression"),
    )
    # Measured before there were these, a run cannot be chosen.
    validation = (f"val/int8_{metric.name}", f"val/fp32_{metric.name}", f"val/{metric.of('drop')}")
    seen = set()
    for run in runs:
        artifacts = frozenset(item for item in run.tags.items() if item[0].startswith("artifact."))
        reason = None
        if run.status != "FINISHED":
            reason = run.status.lower()
        elif run.metric != metric:
            reason = "judged by another metric"
        elif any(_is_lacking(run, name) for name in required):
            reason = "without all metrics"
        elif any(_is_lacking(run, name) for name in validation):
            reason = "without val/ metrics: run again"
        elif artifacts in seen:
            reason = "repeated"
        elif artifacts:
            seen.add(artifacts)
        reasons.append(reason)
    return reasons


def _is_lacking(run: TrackedRun, name: str) -> bool:
    return not math.isfinite(run.metrics.get(name, math.nan))


def _left_out_text(left_out: Mapping[str, int]) -> str:
    reasons = ", ".join(f"{count} {reason}" for reason, count in sorted(left_out.items()))
    return f"{sum(left_out.values())} left out ({reasons})"


def _settings(run: TrackedRun) -> dict[str, str]:
    settings = {name: value for name, value in run.parameters.items() if name not in _NOT_COMPARED}
    settings |= {name: run.tags[name] for name in _CONDITIONS if name in run.tags}
    own = {"run", "run_id", "within_max_drop", "on_front", *(column.name for column in columns_of(run.metric))}
    return {f"{name} (parameter)" if name in own else name: value for name, value in settings.items()}


def _follows(settings: pd.DataFrame, name: str) -> bool:
    leader = _FOLLOWS.get(name)
    return leader in settings and bool((settings.groupby(leader, dropna=False)[name].nunique(dropna=False) == 1).all())


def _numbers(run: TrackedRun, max_drop_pct: float, metric: Metric) -> dict[str, object]:
    found = run.metrics
    # 98.8 - 98.3 is a little more than 0.5 in floating point.
    within = round(found[f"val/{metric.of('drop')}"], 9) <= max_drop_pct
    # A model that always names the largest class loses nothing against another that does.
    within = within and not found[f"val/int8_{metric.name}"] <= found.get("val/largest_class_pct", math.nan)
    values = {column.name: found.get(column.name, math.nan) for column in columns_of(metric)}
    return {"run": run.name, **values, "within_max_drop": within}


def _as_numbers(column: pd.Series) -> pd.Series:
    """A setting's column as numbers where all of its values are, so that 10 comes after 2."""
    numbers = pd.to_numeric(column, errors="coerce")
    return numbers if numbers.notna().all() else column


def _order(frame: pd.DataFrame, metric: Metric) -> pd.Index:
    """The rows by the rule; ties by latency or the metric, whichever has not been asked, then size, name and id."""
    within = frame["within_max_drop"].astype(bool)
    latency, lost = frame["int8/latency_ms"], metric.drop(0.0, frame[f"val/int8_{metric.name}"])
    keys = pd.DataFrame({"beyond": ~within, "first": latency.where(within, lost)})
    keys["second"] = lost.where(within, latency)
    keys = keys.join(frame[["int8/size_mb", "run", "run_id"]])
    return keys.sort_values(list(keys.columns)).index
