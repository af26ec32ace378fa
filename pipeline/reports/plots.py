"""Plots as PNG files; matplotlib is imported only when one is drawn."""

from __future__ import annotations

import math
from pathlib import Path

from torch import Tensor

from pipeline.measure.sensitivity import Sensitivity


def confusion_matrix(labels: Tensor, predicted: Tensor, class_names: tuple[str, ...], path: Path) -> None:
    """Draw true against predicted classes, both int64 (N), in counts; above 20 classes without the counts."""
    import matplotlib.figure
    from sklearn.metrics import ConfusionMatrixDisplay
    from sklearn.metrics import confusion_matrix as count

    classes = range(len(class_names))
    few = len(class_names) <= 20
    side = 2.5 + 0.5 * min(len(class_names), 20)
    # A Figure of its own, without pyplot: no global state, no window system.
    figure = matplotlib.figure.Figure(figsize=(side, side), layout="constrained")
    axes = figure.subplots()
    display = ConfusionMatrixDisplay(
        count(labels.numpy(), predicted.numpy(), labels=list(classes)), display_labels=class_names
    )
    display.plot(ax=axes, include_values=few, cmap="Blues", colorbar=False, xticks_rotation="vertical")
    if not few:
        axes.set_xticks([])
        axes.set_yticks([])
    axes.set_title("int8 on the test part")
    figure.savefig(path, dpi=120)


def sensitivity(found: Sensitivity, path: Path) -> None:
    """Draw the ranked layers: signal-to-noise ratios (dB), and accuracies (%) with each alone int8 or alone float."""
    import matplotlib.figure

    names = [layer.name for layer in found.layers]
    rows = range(len(names))
    figure = matplotlib.figure.Figure(figsize=(11, 1.6 + 0.24 * len(names)), layout="constrained")
    ratios, accuracies = figure.subplots(1, 2, sharey=True)
    for offset, what in ((-0.2, "weight"), (0.2, "activation")):
        values = [getattr(layer, f"{what}_snr_db") for layer in found.layers]
        finite = [value if math.isfinite(value) else math.nan for value in values]  # no noise at all: no bar
        ratios.barh([row + offset for row in rows], finite, height=0.4, label=f"{what}s")
    ratios.set_xlabel("signal-to-noise ratio, float against int8 (dB)")
    for marker, what in (("o", "int8"), ("D", "float")):  # no bars: the axis does not begin at 0
        values = [getattr(layer, f"alone_{what}_pct") for layer in found.layers]
        accuracies.plot(values, rows, marker, markersize=5, alpha=0.8, label=f"this layer alone {what}")
    accuracies.axvline(found.float_pct, color="black", linewidth=1, label="all float")
    accuracies.axvline(found.int8_pct, color="black", linewidth=1, linestyle="dashed", label="all int8")
    accuracies.set_xlabel("validation accuracy (%)")
    ratios.set_yticks(list(rows), names, fontsize=8)
    ratios.set_ylim(len(names) - 0.4, -0.6)  # the worst on top
    for axes in (ratios, accuracies):
        axes.grid(axis="x", alpha=0.3)
        axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1), ncols=2, fontsize=8, frameon=False)
    figure.suptitle("Sensitivity of the layers to int8, worst first")
    figure.savefig(path, dpi=110)
