"""The runtimes as plots: latencies as bars, and the roofline."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from pipeline.measure.roofline import Peak
from pipeline.reports.runtime_report import Measured

_COLORS = {"fp32": "#7f7f7f", "int8": "#1f77b4", "ptq_int8": "#9ecae1"}
_BYTES = {"fp32": 4, "int8": 1, "ptq_int8": 1}
_MARKERS = {"eager": "o", "torchscript": "s", "onnxruntime": "D", "openvino": "^"}


def bars(rows: Sequence[Measured], path: Path) -> None:
    """Draw a panel for each loop: medians in milliseconds with their 95 % intervals, the fastest on top."""
    import matplotlib.figure

    loops = list(dict.fromkeys((row.threads, row.batch_size) for row in rows))
    most = max(sum((row.threads, row.batch_size) == loop for row in rows) for loop in loops)
    figure = matplotlib.figure.Figure(figsize=(5.6 * len(loops), 1.4 + 0.38 * most), layout="constrained")
    for axes, loop in zip(np.atleast_1d(figure.subplots(1, len(loops))), loops, strict=True):
        shown = sorted((row for row in rows if (row.threads, row.batch_size) == loop), key=lambda row: row.median_ms[0])
        medians = [row.median_ms[0] for row in shown]
        errors = [
            [row.median_ms[0] - row.median_ms[1] for row in shown],
            [row.median_ms[2] - row.median_ms[0] for row in shown],
        ]
        drawn = axes.barh(range(len(shown)), medians, xerr=errors, color=[_COLORS[row.form] for row in shown])
        axes.bar_label(drawn, [f" {row.median_ms[0]:.2f}  ({row.to_eager_fp32[0]:.1f}×)" for row in shown], fontsize=8)
        axes.set_yticks(range(len(shown)), [f"{row.runtime} {row.form}" for row in shown], fontsize=8)
        axes.invert_yaxis()
        axes.set_xlim(0, 1.5 * max(row.median_ms[2] for row in shown))
        axes.set_xlabel("median ms a batch (times as fast as eager fp32)")
        axes.set_title(f"{loop[0]} thread{'s' if loop[0] > 1 else ''}, batch {loop[1]}", fontsize=10)
        axes.grid(axis="x", alpha=0.3)
    figure.savefig(path, dpi=110)


def roofline(rows: Sequence[Measured], peaks: Mapping[int, Peak], macs: int, weights: int, path: Path) -> None:
    """Draw what each runtime reaches below the machine's roofs (Williams, Waterman and Patterson 2009), a panel for
    each number of threads.

    The arithmetic intensity counts the bytes that a batch must read at least: every weight once, 4 bytes each in fp32
    and 1 in int8. What lies between the layers is left out, since caches may hold it.
    """
    import matplotlib.figure

    figure = matplotlib.figure.Figure(figsize=(7.5 * len(peaks), 5.2), layout="constrained")
    for axes, (threads, peak) in zip(np.atleast_1d(figure.subplots(1, len(peaks))), peaks.items(), strict=True):
        shown = [row for row in rows if row.threads == threads]
        points = [macs * row.batch_size / (weights * _BYTES[row.form]) for row in shown]
        ridge = max(peak.fp32_gmacs, peak.int8_gmacs) / peak.memory_gbytes  # where the higher roof becomes flat
        reach = np.geomspace(min(points) / 4, max(*points, ridge) * 4, 100)
        for form, roof in (("fp32", peak.fp32_gmacs), ("int8", peak.int8_gmacs)):
            label = f"{form} roof: {roof:.0f} GMAC/s" + (f" ({peak.int8_kernel})" if form == "int8" else "")
            axes.plot(reach, np.minimum(roof, peak.memory_gbytes * reach), color=_COLORS[form], label=label)
        for row, point in zip(shown, points, strict=True):
            size = 40 + 8 * row.batch_size
            style = {"s": size, "color": _COLORS[row.form], "marker": _MARKERS[row.runtime], "alpha": 0.8}
            axes.scatter(point, row.gmacs_a_second(macs), **style, zorder=3)
        for name in dict.fromkeys(row.runtime for row in shown):
            axes.scatter([], [], color="black", marker=_MARKERS[name], label=name)
        axes.set_xscale("log")
        axes.set_yscale("log")
        axes.set_xlabel("multiply-accumulates for each byte of weights")
        axes.set_ylabel("10⁹ multiply-accumulates a second")
        batches = "; larger marks are larger batches" if len({row.batch_size for row in shown}) > 1 else ""
        axes.set_title(f"{threads} thread{'s' if threads > 1 else ''}{batches}", fontsize=10)
        axes.grid(alpha=0.3, which="both")
        axes.legend(fontsize=8, loc="lower right")
    figure.savefig(path, dpi=110)
