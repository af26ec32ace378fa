"""The plots of a comparison as PNG files, which the page shows too.

The metric is that of the validation part, by which the front is found and a run chosen.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from pipeline.measure.statistics import accuracy_interval
from pipeline.reports.comparison.table import Comparison, pareto_front
from pipeline.reports.comparison.text import cells
from pipeline.tasks import Metric

WIDTH, HEIGHT = 1200, 750
"""Of every picture, in pixels."""
_DPI = 150
# Okabe and Ito's palette, told apart with any kind of colour vision; its yellow is too pale on white.
_PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
_GREY = "#555555"
_STYLES = ("-", "--", ":", "-.")
_LARGEST_AREA, _SMALLEST_AREA = 420.0, 14.0  # square points, of the largest and the smallest model
_LOGARITHMIC_FROM = 20.0  # times that the slowest takes as long as the fastest
_MAX_LABEL = 40  # characters that a legend has room for; more would squeeze the plot
_MAX_LEGEND = 12
_MAX_TICKS = 15


class Mark(NamedTuple):
    """Where a model lies in a picture, in pixels from its upper left corner, and what is known of it."""

    x: float
    y: float
    text: str


def draw_latency(comparison: Comparison, path: Path) -> list[Mark]:
    """Draw the metric over latency in ms, with intervals, the front, and fp32 and int8 of a run joined."""
    models, metric = _models(comparison), comparison.metric
    figure, axes = _axes(
        f"{metric.label.capitalize()} against latency", "latency at batch 1, ms (median; bar: to the 90th percentile)"
    )
    axes.set_ylabel(_label_of(metric, models))
    latency, values, largest = models["latency_ms"], models["value"], models["size_mb"].max()
    for backend, colour in _colours(models).items():
        forms = [models[(models["backend"] == backend) & (models["form"] == form)] for form in ("fp32", "int8")]
        axes.plot([], [], "o", ms=8, color=colour, label=_label(backend or "runs"))
        joined = [np.stack([of_form[name] for of_form in forms]) for name in ("latency_ms", "value")]
        axes.plot(*joined, color=colour, lw=0.8, alpha=0.35)
        for chosen, face, edge in zip(forms, ("none", colour), (colour, "white"), strict=True):
            area = np.maximum(_LARGEST_AREA * chosen["size_mb"] / largest, _SMALLEST_AREA)
            look: dict[str, Any] = {"facecolors": face, "edgecolors": edge, "linewidths": 1.2, "zorder": 3}
            axes.scatter(chosen["latency_ms"], chosen["value"], area, **look)
            _draw_intervals(axes, chosen, chosen["latency_ms"], colour, chosen["latency_bar"])
    axes.plot([], [], "o", ms=8, color="#444444", label="int8 (area: size)")
    axes.plot([], [], "o", ms=8, color="#444444", markerfacecolor="none", label="fp32 (area: size)")
    best = models[pareto_front(latency, values, metric)].sort_values("latency_ms")
    axes.step(best["latency_ms"], best["value"], "--", where="post", color=_GREY, zorder=1, label="Pareto front")
    if latency.min() > 0 and latency.max() / latency.min() >= _LOGARITHMIC_FROM:
        axes.set_xscale("log")
    else:
        axes.set_xlim(left=0)
    return _finish(figure, axes, path, latency, models)


def draw_epochs(comparison: Comparison, path: Path) -> list[Mark]:
    """Draw the metric of int8 over QAT epochs: the `epoch_lines`, of which there must be one."""
    models, lines, metric = _models(comparison), epoch_lines(comparison), comparison.metric
    colours, drawn = _colours(models), pd.concat(lines.values())
    figure, axes = _axes(f"int8 {metric.label} against QAT epochs", "QAT epochs")
    axes.set_ylabel(f"int8 {_label_of(metric, models)}")
    counts = sorted(set(drawn["epochs"]))
    # Moved sideways a little, so that the intervals of the lines do not cover each other.
    step = min(np.diff(counts), default=1.0) * min(0.06, 0.5 / len(lines))
    styles = {backend: itertools.cycle(_STYLES) for backend in colours}
    places = []
    for index, (label, line) in enumerate(lines.items()):
        backend = line["backend"].iloc[0]
        colour, places_of_line = colours[backend], line["epochs"] + step * (index - (len(lines) - 1) / 2)
        look: dict[str, Any] = {"linestyle": next(styles[backend]), "marker": "o", "mec": "white", "zorder": 3}
        axes.plot(places_of_line, line["value"], color=colour, label=_label(label), **look)
        _draw_intervals(axes, line, places_of_line, colour, None)
        places.append(places_of_line)
    float_values = models.loc[models["form"] == "fp32", "value"].round(9).unique()
    if len(float_values) == 1:
        axes.axhline(float_values[0], color=_GREY, linestyle="--", lw=1.2, zorder=1, label="fp32, without QAT")
    if len(counts) <= _MAX_TICKS:
        axes.set_xticks(counts)
    return _finish(figure, axes, path, pd.concat(places), drawn)


def epoch_lines(comparison: Comparison) -> dict[str, pd.DataFrame]:
    """int8 models, the fewest QAT epochs first, by what they share: runs that differ in their QAT epochs alone.

    Runs that name no epochs are in none.
    """
    models = _models(comparison)
    models = models[(models["form"] == "int8") & models["epochs"].notna()]
    return {str(shared): line.sort_values("epochs") for shared, line in models.groupby("shared")}


def _models(comparison: Comparison) -> pd.DataFrame:
    """A row for each model, first the fp32 ones, in ms, the metric's unit and MB; bars are 0 where not known."""
    frame, metric = comparison.frame, comparison.metric
    backends = pd.Series(comparison.parameter("backend.name"), dtype=object).fillna("")
    others = [name for name in comparison.varying if name not in ("backend.name", "qat.epochs")]
    shared = [", ".join(filter(None, both)) or "int8" for both in zip(backends, _in_words(frame, others), strict=True)]
    differs = _in_words(frame, comparison.varying)
    forms = []
    for form in ("fp32", "int8"):
        latency, p90 = frame[f"{form}/latency_ms"], frame[f"{form}/latency_p90_ms"]
        values, size = frame[f"val/{form}_{metric.name}"], frame[f"{form}/size_mb"]
        # Of means the runs do not tell one.
        images = frame["val/images"] if metric.is_share else itertools.repeat(None)
        intervals = pd.DataFrame(list(map(accuracy_interval, values, images)))
        texts = [
            "\n".join(
                filter(None, (run, words, f"{form}, validation: {metric.text(value)}", f"{ms:.2f} ms, {mb:.2f} MB"))
            )
            for run, words, value, ms, mb in zip(frame["run"], differs, values, latency, size, strict=True)
        ]
        columns = {
            "form": form,
            "backend": backends,
            "shared": shared,
            "epochs": pd.to_numeric(pd.Series(comparison.parameter("qat.epochs"), dtype=object), errors="coerce"),
            "latency_ms": latency,
            "latency_bar": (p90 - latency).clip(lower=0).fillna(0),
            "value": values,
            "bar_below": (values - intervals[0]).clip(lower=0).fillna(0),
            "bar_above": (intervals[1] - values).clip(lower=0).fillna(0),
            "size_mb": size,
            "text": texts,
        }
        forms.append(pd.DataFrame(columns))
    return pd.concat(forms, ignore_index=True)


def _in_words(frame: pd.DataFrame, names: Sequence[str]) -> list[str]:
    """What each row has in the columns of these names."""
    columns = [[f"{name}={text}" for text in cells(frame[name])] for name in names]
    return [", ".join(column[row] for column in columns) for row in range(len(frame))]


def _colours(models: pd.DataFrame) -> dict[str, str]:
    """A colour for each backend, by its name."""
    return dict(zip(sorted(set(models["backend"])), itertools.cycle(_PALETTE), strict=False))


def _label(text: str) -> str:
    """A label that is no longer than a legend's, and that matplotlib does not read as a formula."""
    return (text if len(text) <= _MAX_LABEL else f"{text[: _MAX_LABEL - 1]}…").replace("$", r"\$")


def _label_of(metric: Metric, models: pd.DataFrame) -> str:
    known = (models["bar_below"] + models["bar_above"]).any()
    label = f"validation {metric.label}, %" if metric.unit == "pct" else f"validation {metric.heading}"
    return f"{label} (bar: 95 % Wilson interval)" if known else label


def _axes(title: str, x_label: str) -> tuple[Figure, Axes]:
    # A Figure of its own, without pyplot: no global state, no window system.
    figure = Figure(figsize=(WIDTH / _DPI, HEIGHT / _DPI), dpi=_DPI, layout="constrained")
    axes = figure.subplots()
    axes.grid(color="#e6e6e6", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_title(title, loc="left")
    axes.set_xlabel(x_label)
    return figure, axes


def _draw_intervals(axes: Axes, models: pd.DataFrame, x: pd.Series, colour: str, latency_bar: pd.Series | None) -> None:
    across = None if latency_bar is None else [0 * latency_bar, latency_bar]
    bars: dict[str, Any] = {"yerr": [models["bar_below"], models["bar_above"]], "xerr": across}
    axes.errorbar(x, models["value"], fmt="none", ecolor=colour, elinewidth=1, alpha=0.5, zorder=2, **bars)


def _finish(figure: Figure, axes: Axes, path: Path, x: pd.Series, models: pd.DataFrame) -> list[Mark]:
    handles, labels = axes.get_legend_handles_labels()
    if len(handles) <= _MAX_LEGEND:
        axes.legend(handles, labels, frameon=False, fontsize=9, loc="center left", bbox_to_anchor=(1.0, 0.5))
    figure.savefig(path, dpi="figure", format="png")
    pixels = axes.transData.transform(np.column_stack([x, models["value"]]))
    return [Mark(right, HEIGHT - up, text) for (right, up), text in zip(pixels, models["text"], strict=True)]
