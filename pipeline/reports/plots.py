"""Plots as PNG files; matplotlib is imported only when one is drawn."""

from __future__ import annotations

import math
from pathlib import Path

from pipeline.measure.sensitivity import Sensitivity


def sensitivity(found: Sensitivity, path: Path) -> None:
    """Draw the ranked layers: signal-to-noise ratios (dB), and the metric with each alone int8 or alone float."""
    import matplotlib.figure

    names = [layer.name for layer in found.layers]
    rows = range(len(names))
    figure = matplotlib.figure.Figure(figsize=(11, 1.6 + 0.24 * len(names)), layout="constrained")
    ratios, levels = figure.subplots(1, 2, sharey=True)
    for offset, what in ((-0.2, "weight"), (0.2, "activation")):
        values = [getattr(layer, f"{what}_snr_db") for layer in found.layers]
        finite = [value if math.isfinite(value) else math.nan for value in values]  # no noise at all: no bar
        ratios.barh([row + offset for row in rows], finite, height=0.4, label=f"{what}s")
    ratios.set_xlabel("signal-to-noise ratio, float against int8 (dB)")
    for marker, what in (("o", "int8"), ("D", "float")):  # no bars: the axis does not begin at 0
        values = [getattr(layer, f"alone_{what}") for layer in found.layers]
        levels.plot(values, rows, marker, markersize=5, alpha=0.8, label=f"this layer alone {what}")
    levels.axvline(found.all_float, color="black", linewidth=1, label="all float")
    levels.axvline(found.all_int8, color="black", linewidth=1, linestyle="dashed", label="all int8")
    levels.set_xlabel(f"validation {found.metric.in_words}")
    ratios.set_yticks(list(rows), names, fontsize=8)
    ratios.set_ylim(len(names) - 0.4, -0.6)  # the worst on top
    for axes in (ratios, levels):
        axes.grid(axis="x", alpha=0.3)
        axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1), ncols=2, fontsize=8, frameon=False)
    figure.suptitle("Sensitivity of the layers to int8, worst first")
    figure.savefig(path, dpi=110)
