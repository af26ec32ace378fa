"""The results table, in the terminal and in MLflow, and the lines to type next."""

from __future__ import annotations

import shlex
from collections.abc import Mapping

from tabulate import tabulate

from pipeline.config import EvaluateConfig

# column, metric, digits
_COLUMNS = (
    ("accuracy %", "accuracy_pct", 2),
    ("latency ms", "latency_ms", 2),
    ("p90 ms", "latency_p90_ms", 2),
    ("p99 ms", "latency_p99_ms", 2),
    ("size MB", "size_mb", 2),
)
# The final metrics that compare runs, by name; `evaluate` reports them.
METRICS = (
    *(f"{form}/{metric}" for form in ("fp32", "int8") for _, metric, _ in _COLUMNS),
    "accuracy_drop_pct",
    "speedup",
    "compression",
)


def results_table(metrics: Mapping[str, float], style: str) -> str:
    """fp32 and int8 side by side with the change, in a style of tabulate ('simple', 'github')."""
    rows = [
        [form, *(f"{metrics[f'{form}/{metric}']:.{digits}f}" for _, metric, digits in _COLUMNS)]
        for form in ("fp32", "int8")
    ]
    change = [
        "change",
        f"{-metrics['accuracy_drop_pct'] + 0.0:+.2f}",
        _times(metrics["speedup"], "faster", "slower"),
        "",
        "",
        _times(metrics["compression"], "smaller", "larger"),
    ]
    headers = ["", *(column for column, _, _ in _COLUMNS)]
    return tabulate([*rows, change], headers, tablefmt=style, disable_numparse=True, stralign="right")


def conditions(evaluate: EvaluateConfig, cpu: str) -> str:
    """How the latencies of the table were taken."""
    threads = f"{evaluate.threads} thread{'s' if evaluate.threads > 1 else ''}"
    return f"latency: batch 1, {threads}, median of {evaluate.repeats} interleaved repeats, {cpu}"


def next_lines(overrides: list[str], default_store: bool) -> str:
    """The lines that a user is likely to type next."""
    dropped = ("backend", "qat.epochs", "force", "stages", "tracking.run_name")
    kept = [shlex.quote(text) for text in overrides if text.lstrip("+").split("=")[0] not in dropped]
    sweep = " ".join(["python -m pipeline -m", *kept, "backend=fbgemm,qnnpack qat.epochs=1,2,3"])
    ui = "make ui    # compare the runs at http://127.0.0.1:5000\n       " if default_store else ""
    return f"next:  {ui}{sweep}"


def _times(ratio: float, better: str, worse: str) -> str:
    return f"{ratio:.2f}x {better}" if ratio >= 1 else f"{1 / ratio:.2f}x {worse}"
