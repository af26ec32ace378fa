"""The results table, in the terminal and in MLflow, and the lines to type next."""

from __future__ import annotations

import shlex
from collections.abc import Mapping

from tabulate import tabulate

from pipeline.measure.pairs import PAIRS
from pipeline.measure.statistics import SIGNIFICANCE
from pipeline.settings.config import EvaluateConfig

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
    ("test %", "accuracy_pct", 2),
    ("latency ms", "latency_ms", 2),
    ("p90", "latency_p90_ms", 2),
    ("p99", "latency_p99_ms", 2),
    ("size MB", "size_mb", 2),
)
_PAIR_NUMBERS = (
    *("difference_pct", "difference_ci_low_pct", "difference_ci_high_pct"),
    *("lost_images", "won_images", "mcnemar_p_holm"),
)
# The final metrics that compare runs, by name; `evaluate` reports them.
METRICS = (
    *(f"val/{form}_accuracy_pct" for form in ("fp32", "int8")),
    "val/accuracy_drop_pct",
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
    interval = (metrics["accuracy_drop_ci_high_pct"], metrics["accuracy_drop_ci_low_pct"])
    between = "[{:+.2f}, {:+.2f}]".format(*(0.0 - end for end in interval))
    others = (change.get(metric, "") for _, metric, _ in _COLUMNS[1:])
    rows.append(["change", "", change.pop("accuracy_pct"), between, *others])
    align = ("left", *["right"] * (len(rows[0]) - 1))
    headers = ["", "val %", _COLUMNS[0][0], "95 % interval", *(column for column, _, _ in _COLUMNS[1:])]
    return tabulate(rows, headers, tablefmt=style, disable_numparse=True, colalign=align)


def _cells(form: str, metrics: Mapping[str, float]) -> list[str]:
    """Accuracy, interval and the other columns; a dash for what was not measured."""
    values = [(metrics.get(f"{form}/{metric}"), digits) for _, metric, digits in _COLUMNS]
    accuracy, *others = ["–" if value is None else f"{value:.{digits}f}" for value, digits in values]
    low, high = (metrics[f"{form}/accuracy_ci_{end}_pct"] for end in ("low", "high"))
    return [f"{metrics[f'val/{form}_accuracy_pct']:.2f}", accuracy, f"[{low:.2f}, {high:.2f}]", *others]


def pairs_table(metrics: Mapping[str, float], style: str) -> str:
    """A row for each pair of forms that was compared on the test images, in a style of tabulate."""
    rows = []
    for pair in PAIRS:
        number = {name: metrics.get(f"{pair.prefix}/{name}") for name in _PAIR_NUMBERS}
        if any(value is None for value in number.values()):
            continue
        rows.append(
            [
                f"{FORMS[pair.first]} – {FORMS[pair.second]}",
                f"{number['difference_pct']:+.2f}",
                f"[{number['difference_ci_low_pct']:+.2f}, {number['difference_ci_high_pct']:+.2f}]",
                f"{number['lost_images']:.0f} / {number['won_images']:.0f}",
                f"{number['mcnemar_p_holm']:.2g}",
            ]
        )
    headers = ["test images, in pairs", "points", "95 % interval", "lost / won", "p"]
    align = ("left", *["right"] * (len(headers) - 1))
    return tabulate(rows, headers, tablefmt=style, disable_numparse=True, colalign=align)


def in_words(metrics: Mapping[str, float]) -> str:
    """What the numbers mean: whether there is a drop that is no chance, whether QAT was worth it, what is wrong."""
    p = metrics["int8_vs_fp32/mcnemar_p_holm"]
    if 1 in (metrics.get("fp32/named_classes"), metrics.get("int8/named_classes")):
        verdict = "nothing to compare, as the lines about one class say"
    elif p >= SIGNIFICANCE:
        verdict = f"no difference that these images show (p = {p:.2g})"
    else:
        verdict = f"int8 is {'worse' if metrics['accuracy_drop_pct'] > 0 else 'better'}, beyond chance (p = {p:.2g})"
    lines = [f"int8 against fp32: {verdict}", *_worth_of_qat(metrics), *_one_class(metrics)]
    return "\n".join(lines)


def _worth_of_qat(metrics: Mapping[str, float]) -> list[str]:
    """Whether training gained anything over post-training quantization, where it began, on the validation part."""
    if not {"qat/start_val_int8_accuracy_pct", "qat/seconds"} <= metrics.keys():
        return []
    start, kept = (metrics[f"qat/{which}_val_int8_accuracy_pct"] for which in ("start", "kept"))
    took = f"in {_duration(metrics['qat/start_seconds'])}; QAT took {_duration(metrics['qat/seconds'])}"
    if metrics["qat/kept_epoch"] == 0:
        return [f"no epoch of QAT was better on validation than its start, which is kept: PTQ reaches the same {took}"]
    p = metrics["qat/val_mcnemar_p"]
    gain = f"{kept - start + 0.0:+.2f} points on validation over PTQ, its start"
    if p >= SIGNIFICANCE:
        return [f"QAT gains {gain}, no more than chance (p = {p:.2g}): PTQ reaches the same {took}"]
    return [f"QAT gains {gain}, beyond chance (p = {p:.2g}), in {_duration(metrics['qat/seconds'])}"]


def _one_class(metrics: Mapping[str, float]) -> list[str]:
    """A line for each form that has learned nothing, whose accuracy is no more than the largest class's share."""
    return [
        f"{name} names one class for every test image: its accuracy is that class's share, and compares to nothing"
        for form, name in FORMS.items()
        if metrics.get(f"{form}/named_classes") == 1
    ]


def _duration(seconds: float) -> str:
    return f"{seconds:.1f} s" if seconds < 100 else f"{seconds:.0f} s"


def _images(count: float) -> str:
    return f"{count:.0f} image{'' if count == 1 else 's'}"


def conditions(evaluate: EvaluateConfig, metrics: Mapping[str, float], cpu: str) -> str:
    """On how much the accuracies of the tables rest, and how the latencies were taken."""
    largest = metrics["test_largest_class_pct"]
    threads = f"{evaluate.threads} thread{'s' if evaluate.threads > 1 else ''}"
    return (
        f"test: {_images(metrics['test_images'])}, {largest:.1f} % of them of the largest class; 95 % intervals: "
        "Wilson's, and of changes Tango's for pairs; p: exact McNemar, Holm\n"
        f"validation: {_images(metrics['val/images'])}; choices rest on it, between epochs and between runs\n"
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
