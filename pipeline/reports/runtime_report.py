"""The runtimes side by side: as metrics, as a table, as bars, and below the machine's roofs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tabulate import tabulate

from pipeline.flows import BY_PREFIX
from pipeline.measure.latency import Interval
from pipeline.measure.roofline import Peak


@dataclass(frozen=True)
class Measured:
    """One form of the model on one runtime, with so many threads and images at a time.

    Attributes:
        macs: multiply-accumulates of the network, an image.
        peak: what this machine does at most with as many threads.
        median_ms: of a batch, in milliseconds.
        p90_ms, p99_ms: of the rounds of all passes.
        to_eager_fp32, to_best_fp32: how many times as fast as eager fp32, and as the fastest fp32 of the same loop.
        best_fp32: the runtime of that one.
    """

    runtime: str
    form: str
    batch_size: int
    macs: int
    peak: Peak
    median_ms: Interval
    p90_ms: float
    p99_ms: float
    to_eager_fp32: Interval
    to_best_fp32: Interval
    best_fp32: str
    rounds: int
    passes: int

    @property
    def name(self) -> str:
        return f"{self.runtime}/{self.form}"

    @property
    def loop(self) -> str:
        """What was measured together with it, in words."""
        return f"{_threads(self.peak)}, batch {self.batch_size}"

    @property
    def images_a_second(self) -> float:
        return 1000 * self.batch_size / self.median_ms[0]

    @property
    def gmacs_a_second(self) -> float:
        """10^9 multiply-accumulates a second."""
        return self.macs * self.images_a_second / 1e9

    @property
    def share_of_peak_pct(self) -> float:
        """Of what this machine can do at most in this form's arithmetic, in percent."""
        most = self.peak.int8_gmacs if BY_PREFIX[self.form].is_int8 else self.peak.fp32_gmacs
        return 100 * self.gmacs_a_second / most

    def metrics(self) -> dict[str, float]:
        """The numbers by name; one thread and one image are the headline, and the others say theirs."""
        threads = self.peak.threads
        where = "" if (threads, self.batch_size) == (1, 1) else f"_t{threads}_b{self.batch_size}"
        median, low, high = self.median_ms
        return {
            f"{self.name}/latency{where}_ms": median,
            f"{self.name}/latency_ci_low{where}_ms": low,
            f"{self.name}/latency_ci_high{where}_ms": high,
            f"{self.name}/latency_p90{where}_ms": self.p90_ms,
            f"{self.name}/latency_p99{where}_ms": self.p99_ms,
            f"{self.name}/throughput{where}_ips": self.images_a_second,
            f"{self.name}/times_eager_fp32{where}": self.to_eager_fp32[0],
            f"{self.name}/times_best_fp32{where}": self.to_best_fp32[0],
            f"{self.name}/share_of_peak{where}_pct": self.share_of_peak_pct,
        }


def runtimes_table(rows: Sequence[Measured], memory_mb: Mapping[str, float], cpu: str, style: str) -> str:
    """A row for each measurement, the fastest of each loop first, and below it what it rests on.

    `memory_mb` has the peaks that were measured, by `<runtime>/<form>`.
    """
    cells = [
        [
            row.peak.threads,
            row.batch_size,
            row.runtime,
            row.form,
            f"{row.median_ms[0]:.2f}",
            "[{:.2f}, {:.2f}]".format(*row.median_ms[1:]),
            f"{row.p90_ms:.2f}",
            f"{row.p99_ms:.2f}",
            f"{row.images_a_second:.0f}",
            "{:.2f} [{:.2f}, {:.2f}]".format(*row.to_eager_fp32),
            "{:.2f} [{:.2f}, {:.2f}]".format(*row.to_best_fp32),
            f"{row.share_of_peak_pct:.0f} %",
            f"{memory_mb[row.name]:.0f}" if row.name in memory_mb else "–",
        ]
        for row in sorted(rows, key=lambda row: (row.peak.threads, row.batch_size, row.median_ms[0]))
    ]
    headers = ["threads", "batch", "runtime", "form", "median ms", "95 % interval", "p90", "p99", "images/s"]
    headers += ["× eager fp32", "× best fp32", "of peak", "memory MB"]
    align = ["right", "right", "left", "left", *["right"] * 9]
    table = tabulate(cells, headers, tablefmt=style, disable_numparse=True, colalign=align)
    limits = "; ".join(
        f"{_threads(peak)}: fp32 {peak.fp32_gmacs:.0f}, int8 {peak.int8_gmacs:.0f} ({peak.int8_kernel}), memory "
        f"{peak.memory_gbytes:.0f} GB/s"
        for peak in dict.fromkeys(row.peak for row in rows)
    )
    rounds = " to ".join(map(str, sorted({min(row.rounds for row in rows), max(row.rounds for row in rows)})))
    return (
        f"{table}\n\n"
        f"{rounds} rounds, turn by turn, in {rows[0].passes} passes, {cpu}; {rows[0].macs / 1e9:.3f} GMAC an image; "
        f"best fp32: {' and '.join(sorted({row.best_fp32 for row in rows}))}\n"
        f"measured peak in GMAC/s, {limits}\n"
        "memory: the peak of a process that loads the runtime and the model\n"
    )


def draw_bars(rows: Sequence[Measured], path: Path) -> None:
    """Draw a panel for each loop: medians in milliseconds with their 95 % intervals, the fastest on top."""
    import matplotlib.figure

    loops = {row.loop: [other for other in rows if other.loop == row.loop] for row in rows}
    height = 1.4 + 0.38 * max(map(len, loops.values()))
    figure = matplotlib.figure.Figure(figsize=(5.6 * len(loops), height), layout="constrained")
    for axes, (loop, shown) in zip(np.atleast_1d(figure.subplots(1, len(loops))), loops.items(), strict=True):
        shown.sort(key=lambda row: row.median_ms[0])
        medians, low, high = np.array([row.median_ms for row in shown]).T
        names = [f"{row.runtime} {row.form}" for row in shown]
        colours = [BY_PREFIX[row.form].colour for row in shown]
        drawn = axes.barh(names, medians, xerr=[medians - low, high - medians], color=colours)
        axes.bar_label(drawn, [f" {row.median_ms[0]:.2f}  ({row.to_eager_fp32[0]:.1f}×)" for row in shown], fontsize=8)
        axes.tick_params("y", labelsize=8)
        axes.invert_yaxis()
        axes.set_xlim(0, 1.5 * high.max())
        axes.set_xlabel("median ms a batch (times as fast as eager fp32)")
        axes.set_title(loop, fontsize=10)
        axes.grid(axis="x", alpha=0.3)
    figure.savefig(path, dpi=110)


def draw_roofline(rows: Sequence[Measured], weights: int, markers: Mapping[str, str], path: Path) -> None:
    """Draw what each runtime reaches below the machine's roofs (Williams, Waterman and Patterson 2009), a panel for
    each number of threads.

    The arithmetic intensity counts the bytes that a batch must read at least: every weight once, 4 bytes each in fp32
    and 1 in int8. What lies between the layers is left out, since caches may hold it. `markers`: by runtime.
    """
    import matplotlib.figure

    peaks = list(dict.fromkeys(row.peak for row in rows))
    figure = matplotlib.figure.Figure(figsize=(7.5 * len(peaks), 5.2), layout="constrained")
    for axes, peak in zip(np.atleast_1d(figure.subplots(1, len(peaks))), peaks, strict=True):
        shown = [row for row in rows if row.peak == peak]
        weight_bytes = [weights * (1 if BY_PREFIX[row.form].is_int8 else 4) for row in shown]
        points = [row.macs * row.batch_size / size for row, size in zip(shown, weight_bytes, strict=True)]
        ridge = max(peak.fp32_gmacs, peak.int8_gmacs) / peak.memory_gbytes  # where the higher roof becomes flat
        reach = np.geomspace(min(points) / 4, max(*points, ridge) * 4, 100)
        for form, roof, by in (("fp32", peak.fp32_gmacs, ""), ("int8", peak.int8_gmacs, f" ({peak.int8_kernel})")):
            limit = np.minimum(roof, peak.memory_gbytes * reach)
            axes.plot(reach, limit, color=BY_PREFIX[form].colour, label=f"{form} roof: {roof:.0f} GMAC/s{by}")
        for row, point in zip(shown, points, strict=True):
            look = {"color": BY_PREFIX[row.form].colour, "marker": markers[row.runtime], "alpha": 0.8}
            axes.scatter(point, row.gmacs_a_second, 40 + 8 * row.batch_size, zorder=3, **look)
        for name in dict.fromkeys(row.runtime for row in shown):
            axes.scatter([], [], color="black", marker=markers[name], label=name)
        axes.set_xscale("log")
        axes.set_yscale("log")
        axes.set_xlabel("multiply-accumulates for each byte of weights")
        axes.set_ylabel("10⁹ multiply-accumulates a second")
        batches = "; larger marks are larger batches" if len({row.batch_size for row in shown}) > 1 else ""
        axes.set_title(f"{_threads(peak)}{batches}", fontsize=10)
        axes.grid(alpha=0.3, which="both")
        axes.legend(fontsize=8, loc="lower right")
    figure.savefig(path, dpi=110)


def _threads(peak: Peak) -> str:
    return f"{peak.threads} thread{'s' if peak.threads > 1 else ''}"
