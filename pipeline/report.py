"""The results table, in the terminal and in MLflow, and the lines to type next."""

from __future__ import annotations

import shlex
from collections.abc import Mapping

from tabulate import tabulate

from pipeline.config import EvaluateConfig
from pipeline.statistics import SIGNIFICANCE

# What a form's metrics begin with, and what a reader calls it.
FORMS = {
    "fp32": "fp32",
    "fp32_finetuned": "fp32 fine-tuned",
    "ptq_int8": "PTQ int8",
    "qat_fake": "QAT fake-quantized",
    "int8": "QAT int8",
}

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
    """A row for each form that was evaluated and the change from fp32 to int8, in a style of tabulate."""
    rows = [[name, *_cells(form, metrics)] for form, name in FORMS.items() if f"{form}/accuracy_pct" in metrics]
    change = {
        "accuracy_pct": f"{-metrics['accuracy_drop_pct'] + 0.0:+.2f}",
        "latency_ms": _times(metrics["speedup"], "faster", "slower"),
        "size_mb": _times(metrics["compression"], "smaller", "larger"),
    }
    rows.append(["change", change.pop("accuracy_pct"), "", *(change.get(metric, "") for _, metric, _ in _COLUMNS[1:])])
    align = ("left", *["right"] * (len(rows[0]) - 1))
    headers = ["", _COLUMNS[0][0], "95 % interval", *(column for column, _, _ in _COLUMNS[1:])]
    return tabulate(rows, headers, tablefmt=style, disable_numparse=True, colalign=align)


def _cells(form: str, metrics: Mapping[str, float]) -> list[str]:
    """Accuracy, interval and the other columns; a dash for what was not measured."""
    values = [(metrics.get(f"{form}/{metric}"), digits) for _, metric, digits in _COLUMNS]
    accuracy, *others = ["–" if value is None else f"{value:.{digits}f}" for value, digits in values]
    low, high = (metrics[f"{form}/accuracy_ci_{end}_pct"] for end in ("low", "high"))
    return [accuracy, f"[{low:.2f}, {high:.2f}]", *others]


def in_words(metrics: Mapping[str, float]) -> str:
    """What the accuracies can bear: McNemar's test of fp32 against int8, and where known what training alone gave."""
    p = metrics["mcnemar_p"]
    verdict = "a difference beyond chance" if p < SIGNIFICANCE else "no difference that these images show"
    lines = [
        f"fp32 right where int8 is wrong: {_images(metrics['mcnemar_fp32_only_right'])}; "
        f"the reverse: {metrics['mcnemar_int8_only_right']:.0f}",
        f"exact McNemar p = {p:.2g}: {verdict}",
    ]
    if "accuracy_drop_vs_finetuned_pct" in metrics:
        change = -metrics["accuracy_drop_vs_finetuned_pct"] + 0.0
        lines.append(f"against fp32 trained on for as long, QAT int8 is {change:+.2f} points")
    return "\n".join(lines)


def _images(count: float) -> str:
    return f"{count:.0f} image{'' if count == 1 else 's'}"


def conditions(evaluate: EvaluateConfig, test_images: float, cpu: str) -> str:
    """On how much the accuracies of the table rest, and how its latencies were taken."""
    threads = f"{evaluate.threads} thread{'s' if evaluate.threads > 1 else ''}"
    return (
        f"accuracy: {_images(test_images)}, 95 % Wilson interval\n"
        f"latency: batch 1, {threads}, median of {evaluate.repeats} interleaved repeats, {cpu}"
    )


def next_lines(overrides: list[str], way_to_runs: str) -> str:
    """The lines that a user is likely to type next; `way_to_runs` is how to see them, where a browser shows them."""
    dropped = ("backend", "qat.epochs", "force", "stages", "tracking.run_name")
    kept = [shlex.quote(text) for text in overrides if text.lstrip("+").split("=")[0] not in dropped]
    sweep = " ".join(["python -m pipeline -m", *kept, "backend=fbgemm,qnnpack qat.epochs=1,2,3"])
    return "next:  " + "\n       ".join([*([way_to_runs] if way_to_runs else []), sweep])


def _times(ratio: float, better: str, worse: str) -> str:
    return f"{ratio:.2f}x {better}" if ratio >= 1 else f"{1 / ratio:.2f}x {worse}"
