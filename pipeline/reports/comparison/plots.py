"""The plots as PNG files, for reports and for MLflow's page of a run."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

import pipeline.reports.comparison.points as drawn
from pipeline.reports.comparison.points import Point
from pipeline.reports.comparison.table import Comparison

_LARGEST_AREA = 420.0  # square points, of the largest model
_SMALLEST_AREA = 14.0
_DPI = 150
_MAX_LEGEND = 12
_MAX_TICKS = 15
_STYLES: tuple[Literal["-", "--", ":", "-."], ...] = ("-", "--", ":", "-.")


def draw_accuracy_latency(comparison: Comparison, path: Path) -> None:
    """Draw accuracy in % over latency in ms, with intervals, the front, and fp32 and int8 of a run joined."""
    pairs = drawn.pairs(comparison)
    points = [point for pair in pairs for point in pair]
    colours = drawn.colours(points)
    figure, axes = _figure()
    front = drawn.front(points)
    axes.plot(
        [point.latency_ms for point in front],
        [point.accuracy_pct for point in front],
        drawstyle="steps-post",
        color=drawn.FRONT_COLOUR,
        linestyle="--",
        linewidth=1.6,
        zorder=1,
    )
    largest = max(point.size_mb for point in points)
    for fp32, int8 in pairs:
        colour = colours[int8.backend]
        axes.plot(
            [fp32.latency_ms, int8.latency_ms], [fp32.accuracy_pct, int8.accuracy_pct], color=colour, lw=0.8, alpha=0.35
        )
        for point in (fp32, int8):
            _interval(axes, point, point.latency_ms, colour, point.latency_bar)
            axes.scatter(
                point.latency_ms,
                point.accuracy_pct,
                s=max(_LARGEST_AREA * point.size_mb / largest, _SMALLEST_AREA),
                facecolors=colour if point.form == "int8" else "none",
                edgecolors="white" if point.form == "int8" else colour,
                linewidths=0.8 if point.form == "int8" else 1.4,
                zorder=3,
            )
    if drawn.wants_logarithm(points):
        axes.set_xscale("log")
    else:
        axes.set_xlim(left=0)
    axes.set_xlabel(drawn.LATENCY_AXIS)
    axes.set_ylabel(drawn.accuracy_axis(points))
    axes.set_title("Accuracy against latency", loc="left")
    handles = [_key(_plain(backend or "runs"), color=colour, marker="o") for backend, colour in colours.items()]
    handles += [
        _key("int8 (area: size)", color="#444444", marker="o"),
        _key("fp32 (area: size)", color="#444444", marker="o", markerfacecolor="none"),
        Line2D([], [], color=drawn.FRONT_COLOUR, linestyle="--", lw=1.2, label="Pareto front"),
    ]
    _finish(figure, axes, handles, path)


def draw_accuracy_epochs(comparison: Comparison, path: Path) -> None:
    """Draw int8 accuracy in % over QAT epochs, a line for each backend, of runs that name their epochs."""
    lines = drawn.epoch_lines(comparison)
    points = [point for line in lines for point in line.points]
    colours = drawn.colours(points)
    figure, axes = _figure()
    handles = []
    for line, number, shift in zip(lines, drawn.styles(lines), drawn.dodge(lines), strict=True):
        style, colour = _STYLES[number % len(_STYLES)], colours[line.backend]
        epochs = [point.epochs + shift for point in line.points]
        accuracies = [point.accuracy_pct for point in line.points]
        axes.plot(epochs, accuracies, color=colour, linestyle=style, marker="o", ms=6, mec="white", lw=1.6, zorder=3)
        for point in line.points:
            _interval(axes, point, point.epochs + shift, colour)
        handles.append(
            Line2D([], [], color=colour, linestyle=style, marker="o", ms=6, mec="white", label=_plain(line.label))
        )
    shared = drawn.shared_float_accuracy([fp32 for fp32, _ in drawn.pairs(comparison)])
    if shared is not None:
        axes.axhline(shared, color=drawn.FLOAT_COLOUR, linestyle="--", lw=1.2, zorder=1)
        handles.append(Line2D([], [], color=drawn.FLOAT_COLOUR, linestyle="--", lw=1.2, label="fp32, without QAT"))
    counts = sorted({point.epochs for point in points})
    if len(counts) <= _MAX_TICKS:
        axes.set_xticks(counts)
    axes.set_xlabel("QAT epochs")
    axes.set_ylabel(f"int8 {drawn.accuracy_axis(points)}")
    axes.set_title("int8 accuracy against QAT epochs", loc="left")
    _finish(figure, axes, handles, path)


def _figure() -> tuple[Figure, Axes]:
    # A Figure of its own, without pyplot: no global state, no window system.
    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.subplots()
    axes.grid(color="#e6e6e6", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _interval(axes: Axes, point: Point, x: float, colour: str, latency_bar: float = 0.0) -> None:
    below, above = point.accuracy_bar
    if below or above:
        axes.errorbar(x, point.accuracy_pct, yerr=[[below], [above]], ecolor=colour, elinewidth=1, alpha=0.5, zorder=2)
    if latency_bar:
        axes.errorbar(
            x, point.accuracy_pct, xerr=[[0.0], [latency_bar]], ecolor=colour, elinewidth=1, alpha=0.5, zorder=2
        )


def _plain(label: str) -> str:
    """A label that matplotlib does not read as a formula."""
    return drawn.for_legend(label).replace("$", r"\$")


def _key(label: str, **style: str) -> Line2D:
    return Line2D([], [], linestyle="none", markersize=8, label=label, **style)  # type: ignore[arg-type]


def _finish(figure: Figure, axes: Axes, handles: list[Line2D], path: Path) -> None:
    if len(handles) <= _MAX_LEGEND:
        axes.legend(handles=handles, frameon=False, fontsize=9, loc="center left", bbox_to_anchor=(1.0, 0.5))
    figure.savefig(path, dpi=_DPI, format="png")
