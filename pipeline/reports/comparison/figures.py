"""The plots of the page, drawn by plotly: hover tells a run's name and numbers."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from typing import Any

import plotly.graph_objects as go

import pipeline.reports.comparison.points as drawn
from pipeline.reports.comparison.points import Point
from pipeline.reports.comparison.table import Comparison

_LARGEST_DIAMETER = 30.0  # pixels, of the largest model
_SMALLEST_DIAMETER = 5.0
_FONT = {"family": "system-ui, -apple-system, 'Segoe UI', Roboto, 'Liberation Sans', sans-serif", "size": 14}
_AXIS = {"gridcolor": "#e6e6e6", "zeroline": False, "linecolor": "#999999", "ticks": "outside", "tickcolor": "#999999"}
_DASHES = ("solid", "dash", "dot", "dashdot")


def accuracy_latency(comparison: Comparison) -> go.Figure:
    """Accuracy in % over latency in ms: intervals, area as size, fp32 and int8 of a run joined, the front."""
    pairs = drawn.pairs(comparison)
    points = [point for pair in pairs for point in pair]
    colours = drawn.colours(points)
    figure = go.Figure()
    front = drawn.front(points)
    figure.add_scatter(
        x=[point.latency_ms for point in front],
        y=[point.accuracy_pct for point in front],
        mode="lines",
        line={"color": drawn.FRONT_COLOUR, "dash": "dash", "width": 2, "shape": "hv"},
        name="Pareto front",
        hoverinfo="skip",
        legendrank=2000,
    )
    for backend, colour in colours.items():
        of_backend = [pair for pair in pairs if pair[0].backend == backend]
        name = html.escape(drawn.for_legend(backend or "runs"))
        ends = [end for fp32, int8 in of_backend for end in (fp32, int8, None)]
        figure.add_scatter(
            x=[end and end.latency_ms for end in ends],
            y=[end and end.accuracy_pct for end in ends],
            mode="lines",
            line={"color": colour, "width": 1},
            opacity=0.35,
            legendgroup=backend,
            showlegend=False,
            hoverinfo="skip",
        )
        largest = max(point.size_mb for point in points)
        for form, models in zip(("fp32", "int8"), zip(*of_backend, strict=True), strict=True):
            marker = {"color": colour, "line": {"color": "white", "width": 1}, "opacity": 0.9}
            if form == "fp32":
                marker = {"color": "rgba(255, 255, 255, 0)", "line": {"color": colour, "width": 2}}
            marker |= {"size": [_diameter(point, largest) for point in models]}
            figure.add_scatter(**_models(models, colour, marker), name=f"{name} {form}", legendgroup=backend)
    xaxis = {"title": drawn.LATENCY_AXIS, **_AXIS}
    xaxis |= {"type": "log"} if drawn.wants_logarithm(points) else {"rangemode": "tozero"}
    _lay_out(figure, xaxis, {"title": drawn.accuracy_axis(points), **_AXIS})
    return figure


def accuracy_epochs(comparison: Comparison) -> go.Figure | None:
    """int8 accuracy in % over QAT epochs, a line for each backend; None where no run names its epochs."""
    lines = drawn.epoch_lines(comparison)
    if not lines:
        return None
    points = [point for line in lines for point in line.points]
    colours = drawn.colours(points)
    figure = go.Figure()
    for line, number, shift in zip(lines, drawn.styles(lines), drawn.dodge(lines), strict=True):
        colour = colours[line.backend]
        trace = _models(line.points, colour, {"color": colour, "size": 9, "line": {"color": "white", "width": 1}})
        trace |= {"x": [point.epochs + shift for point in line.points], "mode": "lines+markers", "error_x": None}
        figure.add_scatter(
            **trace,
            line={"color": colour, "width": 2, "dash": _DASHES[number % len(_DASHES)]},
            name=html.escape(drawn.for_legend(line.label)),
        )
    counts = sorted({point.epochs for point in points})
    shared = drawn.shared_float_accuracy([fp32 for fp32, _ in drawn.pairs(comparison)])
    if shared is not None:
        margin = 0.3
        figure.add_scatter(
            x=[counts[0] - margin, counts[-1] + margin],
            y=[shared, shared],
            mode="lines",
            line={"color": drawn.FLOAT_COLOUR, "dash": "dash", "width": 1.5},
            name="fp32, without QAT",
            hovertemplate="fp32: %{y:.2f} %<extra></extra>",
        )
    ticks = {"tickvals": counts} if len(counts) <= 15 else {}
    _lay_out(
        figure, {"title": "QAT epochs", **_AXIS, **ticks}, {"title": f"int8 {drawn.accuracy_axis(points)}", **_AXIS}
    )
    return figure


def _models(models: Sequence[Point], colour: str, marker: Mapping[str, Any]) -> dict[str, Any]:
    """A trace of points with their intervals and what hover says of them."""
    bar = {"type": "data", "symmetric": False, "thickness": 1.2, "width": 0, "color": _pale(colour)}
    below, above = zip(*(point.accuracy_bar for point in models), strict=True)
    return {
        "x": [point.latency_ms for point in models],
        "y": [point.accuracy_pct for point in models],
        "mode": "markers",
        "marker": dict(marker),
        "error_x": {**bar, "array": [point.latency_bar for point in models], "arrayminus": [0.0] * len(models)},
        "error_y": {**bar, "array": above, "arrayminus": below},
        "text": [_hover(point) for point in models],
        "hovertemplate": "%{text}<extra></extra>",
    }


def _diameter(point: Point, largest: float) -> float:
    """The diameter in pixels that makes the area proportional to the size, down to the smallest that can be seen."""
    return max(_LARGEST_DIAMETER * (point.size_mb / largest) ** 0.5, _SMALLEST_DIAMETER)


def _hover(point: Point) -> str:
    """What is known of a model, in lines; plotly would read a name as HTML."""
    below, above = point.accuracy_bar
    interval = f" ({point.accuracy_low_pct:.2f} to {point.accuracy_high_pct:.2f})" if below or above else ""
    tail = f" (90th percentile {point.latency_p90_ms:.2f})" if point.latency_bar else ""
    lines = [
        f"<b>{html.escape(point.run)}</b>",
        html.escape(point.differs),
        f"{point.form}, validation: {point.accuracy_pct:.2f} %{interval}",
        f"{point.latency_ms:.2f} ms{tail}",
        f"{point.size_mb:.2f} MB",
    ]
    return "<br>".join(line for line in lines if line)


def _pale(colour: str) -> str:
    red, green, blue = (int(colour[start : start + 2], 16) for start in (1, 3, 5))
    return f"rgba({red}, {green}, {blue}, 0.5)"


def _lay_out(figure: go.Figure, xaxis: Mapping[str, Any], yaxis: Mapping[str, Any]) -> None:
    figure.update_layout(
        font={**_FONT, "color": "#222222"},
        paper_bgcolor="white",
        plot_bgcolor="white",
        height=460,
        margin={"l": 70, "r": 20, "t": 20, "b": 60},
        hoverlabel={"bgcolor": "white", "bordercolor": "#999999", "font": _FONT},
        legend={"itemsizing": "constant"},
        xaxis=dict(xaxis),
        yaxis=dict(yaxis),
    )
