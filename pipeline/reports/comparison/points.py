"""What the plots draw, for whichever library draws it: points, the front, lines over epochs, colours.

Accuracies are those of the validation part, by which the front is found and a run chosen.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pipeline.measure.statistics import accuracy_interval
from pipeline.reports.comparison.table import Comparison, pareto_front
from pipeline.reports.comparison.text import cell_text

FRONT_COLOUR = "#555555"
FLOAT_COLOUR = "#777777"
LATENCY_AXIS = "latency at batch 1, ms (median; bar: to the 90th percentile)"
# Okabe and Ito's palette, told apart with any kind of colour vision; its yellow is too pale on white.
_PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
_MAX_LABEL = 40  # characters
_LOGARITHMIC_FROM = 20.0


@dataclass(frozen=True)
class Point:
    """One model, fp32 or int8: latencies in ms, accuracies in % (`low`, `high`: NaN where unknown), size in MB."""

    form: str
    run: str
    backend: str
    differs: str
    latency_ms: float
    latency_p90_ms: float
    accuracy_pct: float
    accuracy_low_pct: float
    accuracy_high_pct: float
    size_mb: float
    epochs: float

    @property
    def accuracy_bar(self) -> tuple[float, float]:
        """What the interval adds below and above; 0 where there is none."""
        if math.isnan(self.accuracy_low_pct):
            return 0.0, 0.0
        return max(self.accuracy_pct - self.accuracy_low_pct, 0.0), max(self.accuracy_high_pct - self.accuracy_pct, 0.0)

    @property
    def latency_bar(self) -> float:
        """From the median to the 90th percentile; 0 where that is unknown."""
        return 0.0 if math.isnan(self.latency_p90_ms) else max(self.latency_p90_ms - self.latency_ms, 0.0)


@dataclass(frozen=True)
class EpochLine:
    """int8 models that differ in nothing but their QAT epochs, the fewest first."""

    label: str
    backend: str
    points: tuple[Point, ...]


def pairs(comparison: Comparison) -> list[tuple[Point, Point]]:
    """The fp32 and the int8 model of each run, in the order of the table."""
    backends = [value or "" for value in comparison.parameter("backend.name")]
    epochs = [_number(value) for value in comparison.parameter("qat.epochs")]
    rows = comparison.frame.to_dict("records")
    found = []
    for row, backend, count in zip(rows, backends, epochs, strict=True):
        differs = _differs(row, comparison.varying)
        intervals = {
            form: accuracy_interval(row[f"val/{form}_accuracy_pct"], row["val/images"]) for form in ("fp32", "int8")
        }
        fp32, int8 = (
            Point(
                form=form,
                run=row["run"],
                backend=backend,
                differs=differs,
                latency_ms=row[f"{form}/latency_ms"],
                latency_p90_ms=row[f"{form}/latency_p90_ms"],
                accuracy_pct=row[f"val/{form}_accuracy_pct"],
                accuracy_low_pct=intervals[form][0],
                accuracy_high_pct=intervals[form][1],
                size_mb=row[f"{form}/size_mb"],
                epochs=count,
            )
            for form in ("fp32", "int8")
        )
        found.append((fp32, int8))
    return found


def front(points: Sequence[Point]) -> list[Point]:
    """The points that no other one beats, the fastest first."""
    on_front = pareto_front([point.latency_ms for point in points], [point.accuracy_pct for point in points])
    return sorted(
        (point for point, best in zip(points, on_front, strict=True) if best), key=lambda point: point.latency_ms
    )


def epoch_lines(comparison: Comparison) -> list[EpochLine]:
    """A line for each set of runs that differ in their QAT epochs alone; runs that name no epochs are in none."""
    others = [name for name in comparison.varying if name not in ("qat.epochs", "backend.name")]
    grouped: dict[tuple[str, str], list[Point]] = {}
    for row, (_, int8) in zip(comparison.frame.to_dict("records"), pairs(comparison), strict=True):
        if not math.isnan(int8.epochs):
            grouped.setdefault((int8.backend, _differs(row, others)), []).append(int8)
    lines = []
    for (backend, rest), points in sorted(grouped.items()):
        label = ", ".join(part for part in (backend, rest) if part) or "int8"
        lines.append(EpochLine(label, backend, tuple(sorted(points, key=lambda point: point.epochs))))
    return lines


def styles(lines: Sequence[EpochLine]) -> list[int]:
    """A number for each line that tells it from the others of its backend, from 0."""
    backends = [line.backend for line in lines]
    return [backends[:index].count(backend) for index, backend in enumerate(backends)]


def dodge(lines: Sequence[EpochLine]) -> list[float]:
    """How far each line moves sideways, in epochs, so that their intervals do not cover each other."""
    counts = sorted({point.epochs for line in lines for point in line.points})
    gap = min((after - before for before, after in itertools.pairwise(counts)), default=1.0)
    step = gap * min(0.06, 0.5 / max(len(lines), 1))
    return [step * (index - (len(lines) - 1) / 2) for index in range(len(lines))]


def shared_float_accuracy(points: Sequence[Point]) -> float | None:
    """The accuracy of the float model in % where all runs have the same, or None."""
    accuracies = {round(point.accuracy_pct, 9) for point in points if point.form == "fp32"}
    return accuracies.pop() if len(accuracies) == 1 else None


def colours(points: Sequence[Point]) -> Mapping[str, str]:
    """A colour for each backend, by its name."""
    backends = sorted({point.backend for point in points})
    return {backend: _PALETTE[index % len(_PALETTE)] for index, backend in enumerate(backends)}


def for_legend(label: str) -> str:
    """A label cut to what a legend has room for; it would squeeze the plot."""
    return label if len(label) <= _MAX_LABEL else f"{label[: _MAX_LABEL - 1]}…"


def accuracy_axis(points: Sequence[Point]) -> str:
    """The label of an axis with accuracies, which says what their bars are."""
    known = any(not math.isnan(point.accuracy_low_pct) for point in points)
    return "validation accuracy, % (bar: 95 % Wilson interval)" if known else "validation accuracy, %"


def wants_logarithm(points: Sequence[Point]) -> bool:
    """Whether the latencies lie too far apart for a linear axis."""
    latencies = [point.latency_ms for point in points if point.latency_ms > 0]
    return len(latencies) == len(points) and max(latencies) / min(latencies) >= _LOGARITHMIC_FROM


def _differs(row: Mapping[object, object], names: Sequence[str]) -> str:
    return ", ".join(f"{name}={cell_text(row[name])}" for name in names)


def _number(text: str | None) -> float:
    try:
        return float(text) if text is not None else math.nan
    except ValueError:
        return math.nan
