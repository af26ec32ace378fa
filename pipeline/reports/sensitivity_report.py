"""What a sensitivity analysis found, in words: the ranked table, and the setting that acts on it."""

from __future__ import annotations

import csv
import dataclasses
import io
from collections.abc import Sequence

from tabulate import tabulate

from pipeline.measure.sensitivity import RANK_RULE, LayerSensitivity, Sensitivity

# How many layers are named as the worst.
_WORST = 3


def markdown_table(found: Sensitivity, images: int) -> str:
    """The ranked layers, with what the columns mean."""
    headers = ["rank", "layer", "weights dB", "activations dB", "alone int8 %", "alone float %"]
    rows = [
        [
            str(rank),
            f"`{layer.name}`",
            f"{layer.weight_snr_db:.1f}",
            f"{layer.activation_snr_db:.1f}",
            f"{layer.alone_int8_pct:.2f}",
            f"{layer.alone_float_pct:.2f}",
        ]
        for rank, layer in enumerate(found.layers, start=1)
    ]
    table = tabulate(rows, headers, tablefmt="github", disable_numparse=True)
    return (
        f"Accuracy on {images} validation images: {found.float_pct:.2f} % in float, {found.int8_pct:.2f} % in "
        f"(simulated) int8.\n\nLayers {RANK_RULE}. Decibel: float against int8, of the weights, and of the layer's "
        "output on the same float input. 'alone int8': everything else is float; 'alone float': everything "
        f"but this layer's weights is int8, as `backend.skip_layers` does.\n\n{table}\n"
    )


def csv_table(found: Sensitivity) -> str:
    """The ranked layers with every digit, one row each."""
    text = io.StringIO()
    names = [spec.name for spec in dataclasses.fields(LayerSensitivity)]
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["rank", *names])
    for rank, layer in enumerate(found.layers, start=1):
        writer.writerow([rank, *dataclasses.astuple(layer)])
    return text.getvalue()


def advice(found: Sensitivity, skipped: Sequence[str]) -> str:
    """The worst layers, and the setting that leaves them, and those `skipped` already, float.

    Where int8 loses nothing on these images, that is said too: there is nothing to win back.
    """
    worst = found.layers[:_WORST]
    lines = [
        f"  {layer.name}: {layer.alone_int8_pct:.2f} % alone in int8, activations {layer.activation_snr_db:.1f} dB, "
        f"weights {layer.weight_snr_db:.1f} dB"
        for layer in worst
    ]
    names = ",".join([*skipped, *(layer.name for layer in worst)])
    head = f"sensitivity: {found.float_pct:.2f} % in float, {found.int8_pct:.2f} % in int8; the layers that lose most:"
    lossless = found.int8_pct >= found.float_pct
    note = " (int8 loses nothing on these images: there is nothing to win back)" if lossless else ""
    return "\n".join([head, *lines, f"leave them float:  backend.skip_layers=[{names}]{note}"])
