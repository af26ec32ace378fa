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

from pipeline.host.errors import UserError
from pipeline.measure.statistics import accuracy_interval
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
    """A column of the frame with its heading, unit included, and its digits after the point."""

    name: str
    heading: str
    digits: int


COLUMNS = (
    Column("val/int8_accuracy_pct", "int8 validation %", 2),
    Column("val/accuracy_drop_pct", "drop on validation, points", 2),
    Column("int8/accuracy_pct", "int8 test %", 2),
    Column("int8/accuracy_ci_low_pct", "95 % from", 2),
    Column("int8/accuracy_ci_high_pct", "95 % to", 2),
    Column("accuracy_drop_pct", "drop on test, points", 2),
    Column("accuracy_drop_ci_low_pct", "drop 95 % from", 2),
    Column("accuracy_drop_ci_high_pct", "drop 95 % to", 2),
    Column("int8/latency_ms", "int8 latency ms", 2),
    Column("int8/latency_p90_ms", "int8 p90 ms", 2),
    Column("speedup", "speedup ×", 2),
    Column("int8/size_mb", "int8 size MB", 2),
    Column("compression", "compression ×", 2),
    Column("val/fp32_accuracy_pct", "fp32 validation %", 2),
    Column("fp32/accuracy_pct", "fp32 test %", 2),
    Column("fp32/accuracy_ci_low_pct", "fp32 95 % from", 2),
    Column("fp32/accuracy_ci_high_pct", "fp32 95 % to", 2),
    Column("fp32/latency_ms", "fp32 latency ms", 2),
    Column("fp32/latency_p90_ms", "fp32 p90 ms", 2),
    Column("fp32/size_mb", "fp32 size MB", 2),
    Column("fp32_finetuned/accuracy_pct", "fp32 fine-tuned test %", 2),
    Column("accuracy_drop_vs_finetuned_pct", "drop from fine-tuned, points", 2),
    Column("ptq_int8/accuracy_pct", "PTQ int8 test %", 2),
    Column("qat_fake/accuracy_pct", "QAT fake-quantized test %", 2),
    Column("mcnemar_p", "McNemar p", 4),
    Column("val/images", "validation images", 0),
    Column("test_images", "test images", 0),
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
    reasons = _told_once(runs, {run.run_id: _why_left_out(run) for run in runs})
    left_out = dict(Counter(reason for reason in reasons.values() if reason))
    compared = [run for run in runs if not reasons[run.run_id]]
    if not compared:
        raise UserError(f"there is nothing to compare: {_left_out_text(left_out) if left_out else 'no run was found'}")
    settings = pd.DataFrame([_settings(run) for run in compared])
    differing = [str(name) for name in settings if settings[name].nunique(dropna=False) > 1]
    varying = [name for name in differing if not _follows(settings, name)]
    shared = {str(name): settings[name].iloc[0] for name in settings if name not in differing}
    numbers = pd.DataFrame([_numbers(run, max_drop_pct) for run in compared])
    frame = pd.concat([settings[varying].apply(_as_numbers), numbers], axis="columns")
    frame["on_front"] = _int8_on_front(frame)
    frame["run_id"] = [run.run_id for run in compared]
    frame = frame.loc[_order(frame)].reset_index(drop=True)
    return Comparison(frame, tuple(varying), shared, max_drop_pct, left_out)


def pareto_front(latency_ms: Sequence[float], accuracy_pct: Sequence[float]) -> list[bool]:
    """Which points no other one beats: none is as fast and as accurate, and better in one of the two."""
    front = [False] * len(latency_ms)
    best, best_latency = -math.inf, math.nan
    for index in sorted(range(len(latency_ms)), key=lambda index: (latency_ms[index], -accuracy_pct[index])):
        equal_to_best = accuracy_pct[index] == best and latency_ms[index] == best_latency
        if accuracy_pct[index] > best or equal_to_best:
            front[index] = True
            best, best_latency = accuracy_pct[index], latency_ms[index]
    return front


def _why_left_out(run: TrackedRun) -> str | None:
    if run.status != "FINISHED":
        return run.status.lower()
    if not all(math.isfinite(run.metrics.get(name, math.nan)) for name in REQUIRED):
        return "without all metrics"
    known = all(math.isfinite(run.metrics.get(name, math.nan)) for name in VALIDATION)
    return None if known else "without val/ metrics: run again"


def _told_once(runs: Sequence[TrackedRun], reasons: Mapping[str, str | None]) -> dict[str, str | None]:
    """The reasons, and one for each run that has the very artifacts of an earlier one in the list."""
    told, seen = dict(reasons), set()
    for run in runs:
        artifacts = frozenset(item for item in run.tags.items() if item[0].startswith("artifact."))
        if artifacts and not told[run.run_id]:
            told[run.run_id] = "repeated" if artifacts in seen else None
            seen.add(artifacts)
    return told


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
    found = dict(run.metrics)
    for form in ("int8", "fp32"):
        interval = accuracy_interval(found[f"{form}/accuracy_pct"], found.get("test_images"))
        found |= dict(zip((f"{form}/accuracy_ci_low_pct", f"{form}/accuracy_ci_high_pct"), interval, strict=True))
    # 98.8 - 98.3 is a little more than 0.5 in floating point.
    within = round(found["val/accuracy_drop_pct"], 9) <= max_drop_pct
    # A model that always names the largest class loses nothing against another that does.
    within = within and not found["val/int8_accuracy_pct"] <= found.get("val/largest_class_pct", math.nan)
    return {"run": run.name, **{c.name: found.get(c.name, math.nan) for c in COLUMNS}, "within_max_drop": within}


def _as_numbers(column: pd.Series) -> pd.Series:
    """A setting's column as numbers where all of its values are, so that 10 comes after 2."""
    numbers = pd.to_numeric(column, errors="coerce")
    return numbers if numbers.notna().all() else column


def _int8_on_front(frame: pd.DataFrame) -> list[bool]:
    """Which int8 models are on the front of all models, the fp32 ones among them, by their validation accuracy."""
    latency = np.concatenate([frame["int8/latency_ms"], frame["fp32/latency_ms"]])
    accuracy = np.concatenate([frame["val/int8_accuracy_pct"], frame["val/fp32_accuracy_pct"]])
    return pareto_front(latency.tolist(), accuracy.tolist())[: len(frame)]


def _order(frame: pd.DataFrame) -> pd.Index:
    """The rows by the rule; ties by latency or accuracy, whichever has not been asked, then size, name and id."""
    within = frame["within_max_drop"].astype(bool)
    latency, accuracy = frame["int8/latency_ms"], -frame["val/int8_accuracy_pct"]
    keys = pd.DataFrame({"beyond": ~within, "first": latency.where(within, accuracy)})
    keys["second"] = accuracy.where(within, latency)
    keys = keys.join(frame[["int8/size_mb", "run", "run_id"]])
    return keys.sort_values(list(keys.columns)).index
