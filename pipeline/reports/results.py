"""The results table, in the terminal and in MLflow, and the lines to type next."""

from __future__ import annotations

from collections.abc import Mapping

from tabulate import tabulate

from pipeline.flows import BY_PREFIX, FORMS
from pipeline.measure.pairs import PAIRS
from pipeline.measure.statistics import SIGNIFICANCE
from pipeline.settings.config import EvaluateConfig
from pipeline.settings.typed import command

# The columns that are one number: heading and metric.
_MEASURED = {"latency ms": "latency_ms", "p90": "latency_p90_ms", "p99": "latency_p99_ms", "size MB": "size_mb"}
# The final metrics that compare runs, by name; `evaluate` reports them.
METRICS = (
    *("val/fp32_accuracy_pct", "val/int8_accuracy_pct", "val/accuracy_drop_pct"),
    *(f"{form}/{metric}" for form in ("fp32", "int8") for metric in ("accuracy_pct", *_MEASURED.values())),
    *("accuracy_drop_pct", "speedup", "compression"),
)


def results_table(metrics: Mapping[str, float], style: str) -> str:
    """A row for each form that was evaluated and the change from fp32 to int8, in a style of tabulate."""
    rows = []
    for form in FORMS:
        name = form.prefix
        if f"{name}/accuracy_pct" not in metrics:
            continue
        low, high = metrics[f"{name}/accuracy_ci_low_pct"], metrics[f"{name}/accuracy_ci_high_pct"]
        accuracies = [metrics[f"val/{name}_accuracy_pct"], metrics[f"{name}/accuracy_pct"]]
        measured = [metrics.get(f"{name}/{metric}") for metric in _MEASURED.values()]
        cells = ["–" if value is None else f"{value:.2f}" for value in (*accuracies, *measured)]
        rows.append([form.label, *cells[:2], f"[{low:.2f}, {high:.2f}]", *cells[2:]])
    # The drop is fp32 minus int8, the change int8 minus fp32; 0.0 - … makes no -0.00.
    change, least, most = (
        f"{0.0 - metrics[f'accuracy_drop_{what}']:+.2f}" for what in ("pct", "ci_high_pct", "ci_low_pct")
    )
    faster = _times(metrics["speedup"], "faster", "slower")
    smaller = _times(metrics["compression"], "smaller", "larger")
    rows.append(["change", "", change, f"[{least}, {most}]", faster, "", "", smaller])
    return _table(["", "val %", "test %", "95 % interval", *_MEASURED], rows, style)


def pairs_table(metrics: Mapping[str, float], style: str) -> str:
    """A row for each pair of forms that was compared on the test images, in a style of tabulate."""
    rows = []
    for first, second in PAIRS:
        pair = f"{first}_vs_{second}"
        if f"{pair}/mcnemar_p_holm" in metrics:
            low, high = metrics[f"{pair}/difference_ci_low_pct"], metrics[f"{pair}/difference_ci_high_pct"]
            rows.append(
                [
                    f"{BY_PREFIX[first].label} – {BY_PREFIX[second].label}",
                    f"{metrics[f'{pair}/difference_pct']:+.2f}",
                    f"[{low:+.2f}, {high:+.2f}]",
                    f"{metrics[f'{pair}/lost_images']:.0f} / {metrics[f'{pair}/won_images']:.0f}",
                    f"{metrics[f'{pair}/mcnemar_p_holm']:.2g}",
                ]
            )
    return _table(["test images, in pairs", "points", "95 % interval", "lost / won", "p"], rows, style)


def _table(headings: list[str], rows: list[list[str]], style: str) -> str:
    align = ("left", *["right"] * (len(headings) - 1))
    return tabulate(rows, headings, tablefmt=style, disable_numparse=True, colalign=align)


def in_words(metrics: Mapping[str, float]) -> str:
    """What the numbers mean: whether there is a drop that is no chance, whether QAT was worth it, what is wrong."""
    p = metrics["int8_vs_fp32/mcnemar_p_holm"]
    if 1 in (metrics.get("fp32/named_classes"), metrics.get("int8/named_classes")):
        verdict = "nothing to compare, as the lines about one class say"
    elif p >= SIGNIFICANCE:
        verdict = f"no difference that these images show (p = {p:.2g})"
    else:
        verdict = f"int8 is {'worse' if metrics['accuracy_drop_pct'] > 0 else 'better'}, beyond chance (p = {p:.2g})"
    one_class = [
        f"{form.label} names one class for every test image: its accuracy is that class's share, and compares to "
        "nothing"
        for form in FORMS
        if metrics.get(f"{form.prefix}/named_classes") == 1
    ]
    return "\n".join([f"int8 against fp32: {verdict}", *_worth_of_qat(metrics), *one_class])


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
    kept = [text for text in overrides if text.lstrip("+").split("=")[0] not in dropped]
    sweep = command([*kept, "backend=fbgemm,qnnpack", "qat.epochs=1,2,3"], "-m")
    return "next:  " + "\n       ".join([*([way_to_runs] if way_to_runs else []), sweep])


def _times(ratio: float, better: str, worse: str) -> str:
    return f"{ratio:.2f}x {better}" if ratio >= 1 else f"{1 / ratio:.2f}x {worse}"
