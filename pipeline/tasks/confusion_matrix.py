"""The confusion matrix as a PNG file; matplotlib is imported only when one is drawn."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor


def draw(labels: Tensor, predicted: Tensor, class_names: tuple[str, ...], path: Path) -> None:
    """Draw true against predicted classes, both int64 (N), in counts; above 20 classes without the counts."""
    import matplotlib.figure
    from sklearn.metrics import ConfusionMatrixDisplay, confusion_matrix

    classes = range(len(class_names))
    few = len(class_names) <= 20
    side = 2.5 + 0.5 * min(len(class_names), 20)
    # A Figure of its own, without pyplot: no global state, no window system.
    figure = matplotlib.figure.Figure(figsize=(side, side), layout="constrained")
    axes = figure.subplots()
    display = ConfusionMatrixDisplay(
        confusion_matrix(labels.numpy(), predicted.numpy(), labels=list(classes)), display_labels=class_names
    )
    display.plot(ax=axes, include_values=few, cmap="Blues", colorbar=False, xticks_rotation="vertical")
    if not few:
        axes.set_xticks([])
        axes.set_yticks([])
    axes.set_title("int8 on the test part")
    figure.savefig(path, dpi=120)
