"""What a sensitivity analysis found, in words: the ranked table, and the setting that acts on it."""

from __future__ import annotations

from collections.abc import Sequence

from tabulate import tabulate

from pipeline.measure.sensitivity import Sensitivity

# How many layers are named as the worst.
_WORST = 3


def markdown_table(found: Sensitivity, images: int) -> str:
    """The ranked layers, with what the columns mean."""
    metric, unit = found.metric, found.metric.heading
    headers = ["rank", "layer", "weights dB", "activations dB", f"alone int8 {unit}", f"alone float {unit}"]
    rows = [
        [
            str(rank),
            f"`{layer.name}`",
            f"{layer.weight_snr_db:.1f}",
            f"{layer.activation_snr_db:.1f}",
            f"{layer.alone_int8:.2f}",
            f"{layer.alone_float:.2f}",
        ]
        for rank, layer in enumerate(found.layers, start=1)
    ]
    table = tabulate(rows, headers, tablefmt="github", disable_numparse=True)
    return (
        f"{metric.label.capitalize()} on {images} validation images: {metric.text(found.all_float)} in float, "
        f"{metric.text(found.all_int8)} in (simulated) int8.\n\nLayers {found.rule}. "
        "Decibel: float against int8, of the weights, and of the layer's output on the same float input. "
        "'alone int8': everything else is float; 'alone float': everything but this layer's weights is int8, as "
        f"`backend.skip_layers` does.\n\n{table}\n"
    )


def csv_table(found: Sensitivity) -> str:
    """The ranked layers with every digit, one row each."""
    import pandas as pd

    frame = pd.DataFrame(found.layers)
    frame = frame.rename(columns={name: found.metric.in_unit(name) for name in ("alone_int8", "alone_float")})
    frame.insert(0, "rank", range(1, len(frame) + 1))
    return frame.to_csv(index=False)


def advice(found: Sensitivity, skipped: Sequence[str]) -> str:
    """The worst layers, and the setting that leaves them, and those `skipped` already, float.

    Where int8 loses nothing on these images, that is said too: there is nothing to win back.
    """
    metric, worst = found.metric, found.layers[:_WORST]
    lines = [
        f"  {layer.name}: {metric.text(layer.alone_int8)} alone in int8, activations {layer.activation_snr_db:.1f} dB, "
        f"weights {layer.weight_snr_db:.1f} dB"
        for layer in worst
    ]
    names = ",".join([*skipped, *(layer.name for layer in worst)])
    values = f"{metric.text(found.all_float)} in float, {metric.text(found.all_int8)} in int8"
    head = f"sensitivity: {values}; the layers that lose most:"
    lossless = metric.drop(found.all_float, found.all_int8) <= 0
    note = " (int8 loses nothing on these images: there is nothing to win back)" if lossless else ""
    return "\n".join([head, *lines, f"leave them float:  backend.skip_layers=[{names}]{note}"])
