"""The runtimes side by side as a table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from tabulate import tabulate

from pipeline.measure.latency import Interval
from pipeline.measure.roofline import Peak


@dataclass(frozen=True)
class Measured:
    """One form of the model on one runtime, with so many threads and images at a time.

    Attributes:
        median_ms: of a batch, in milliseconds.
        p90_ms, p99_ms: of the rounds of all passes.
        to_eager_fp32, to_best_fp32: how many times as fast as eager fp32, and as the fastest fp32 of the same loop.
        best_fp32: the runtime of that one.
    """

    runtime: str
    form: str
    threads: int
    batch_size: int
    median_ms: Interval
    p90_ms: float
    p99_ms: float
    to_eager_fp32: Interval
    to_best_fp32: Interval
    best_fp32: str
    rounds: int
    passes: int

    @property
    def images_a_second(self) -> float:
        return 1000 * self.batch_size / self.median_ms[0]

    def gmacs_a_second(self, macs: int) -> float:
        """10^9 multiply-accumulates a second, for a network of `macs` an image."""
        return macs * self.images_a_second / 1e9

    def share_of_peak_pct(self, macs: int, peak: Peak) -> float:
        """Of what this machine can do at most in this form's arithmetic, in percent."""
        return 100 * self.gmacs_a_second(macs) / (peak.fp32_gmacs if self.form == "fp32" else peak.int8_gmacs)


def runtimes_table(
    rows: Sequence[Measured],
    peaks: Mapping[int, Peak],
    macs: int,
    memory_mb: Mapping[tuple[str, str], float],
    cpu: str,
    style: str,
) -> str:
    """A row for each measurement, the fastest of each loop first, and below it what it rests on."""
    ordered = sorted(rows, key=lambda row: (row.threads, row.batch_size, row.median_ms[0]))
    cells = [
        [
            row.threads,
            row.batch_size,
            row.runtime,
            row.form,
            f"{row.median_ms[0]:.2f}",
            f"[{row.median_ms[1]:.2f}, {row.median_ms[2]:.2f}]",
            f"{row.p90_ms:.2f}",
            f"{row.p99_ms:.2f}",
            f"{row.images_a_second:.0f}",
            _times(row.to_eager_fp32),
            _times(row.to_best_fp32),
            f"{row.share_of_peak_pct(macs, peaks[row.threads]):.0f} %",
            f"{memory_mb[row.runtime, row.form]:.0f}" if (row.runtime, row.form) in memory_mb else "–",
        ]
        for row in ordered
    ]
    headers = ["threads", "batch", "runtime", "form", "median ms", "95 % interval", "p90", "p99", "images/s"]
    headers += ["× eager fp32", "× best fp32", "of peak", "memory MB"]
    align = ["right", "right", "left", "left", *["right"] * 9]
    table = tabulate(cells, headers, tablefmt=style, disable_numparse=True, colalign=align)
    return f"{table}\n\n{_conditions(rows, peaks, macs, cpu)}\n"


def _times(ratio: Interval) -> str:
    middle, low, high = ratio
    return f"{middle:.2f} [{low:.2f}, {high:.2f}]"


def _conditions(rows: Sequence[Measured], peaks: Mapping[int, Peak], macs: int, cpu: str) -> str:
    limits = "; ".join(
        f"{peak.threads} thread{'s' if peak.threads > 1 else ''}: fp32 {peak.fp32_gmacs:.0f}, int8 "
        f"{peak.int8_gmacs:.0f} ({peak.int8_kernel}), memory {peak.memory_gbytes:.0f} GB/s"
        for peak in peaks.values()
    )
    fewest, most = min(row.rounds for row in rows), max(row.rounds for row in rows)
    rounds = f"{fewest}" if fewest == most else f"{fewest} to {most}"
    return (
        f"{rounds} rounds, turn by turn, in {rows[0].passes} passes, {cpu}; {macs / 1e9:.3f} GMAC an image; best fp32: "
        f"{' and '.join(sorted({row.best_fp32 for row in rows}))}\n"
        f"measured peak in GMAC/s, {limits}\n"
        "memory: the peak of a process that loads the runtime and the model"
    )
