"""The results table, in the terminal and in MLflow, and the lines to type next."""

from __future__ import annotations

from collections.abc import Mapping

from tabulate import tabulate

from pipeline.flows import BY_PREFIX, FORMS
from pipeline.measure.pairs import PAIRS
from pipeline.measure.statistics import SIGNIFICANCE
from pipeline.settings.config import EvaluateConfig
from pipeline.settings.typed import command
from pipeline.tasks import ACCURACY, Metric

# The columns that are one number: heading and metric.
_MEASURED = {"latency ms": "latency_ms", "p90": "latency_p90_ms", "p99": "latency_p99_ms", "size MB": "size_mb"}


def compared(metric: Metric) -> tuple[str, ...]:
    """The final metrics that compare runs, by name; `evaluate` reports them."""
    return (
        *(f"val/{form}_{metric.name}" for form in ("fp32", "int8")),
        f"val/{metric.of('drop')}",
        *(f"{form}/{name}" for form in ("fp32", "int8") for name in (metric.name, *_MEASURED.values())),
        *(metric.of("drop"), "speedup", "compression"),
    )


def results_table(metrics: Mapping[str, float], style: str, metric: Metric = ACCURACY, method: str = "qat") -> str:
    """A row for each form that was evaluated and the change from fp32 to int8, in a style of tabulate."""
    rows = []
    for form in FORMS:
        name = form.prefix
        if f"{name}/{metric.name}" not in metrics:
            continue
        low, high = (metrics[f"{name}/{metric.of(end)}"] for end in ("ci_low", "ci_high"))
        values = [metrics[f"val/{name}_{metric.name}"], metrics[f"{name}/{metric.name}"]]
        measured = [metrics.get(f"{name}/{number}") for number in _MEASURED.values()]
        cells = ["–" if value is None else f"{value:.2f}" for value in (*values, *measured)]
        rows.append([form.label_for(method), *cells[:2], f"[{low:.2f}, {high:.2f}]", *cells[2:]])
    # The change is int8 minus fp32, and the drop what is lost by it; + 0.0 makes no -0.00.
    change, *ends = (
        metric.drop(0.0, metrics[metric.of(what)]) + 0.0 for what in ("drop", "drop_ci_low", "drop_ci_high")
    )
    faster = _times(metrics["speedup"], "faster", "slower")
    smaller = _times(metrics["compression"], "smaller", "larger")
    rows.append(["change", "", f"{change:+.2f}", f"[{min(ends):+.2f}, {max(ends):+.2f}]", faster, "", "", smaller])
    headings = ["", f"val {metric.heading}", f"test {metric.heading}", "95 % interval", *_MEASURED]
    return _table(headings, rows, style)


def pairs_table(metrics: Mapping[str, float], style: str, metric: Metric = ACCURACY, method: str = "qat") -> str:
    """A row for each pair of forms that was compared on the test images, in a style of tabulate."""
    rows = []
    for first, second in PAIRS:
        pair = f"{first}_vs_{second}"
        if f"{pair}/{metric.test}_holm" in metrics:
            value, low, high = (
                metrics[f"{pair}/{metric.in_unit(what)}"]
                for what in ("difference", "difference_ci_low", "difference_ci_high")
            )
            rows.append(
                [
                    f"{BY_PREFIX[first].label_for(method)} – {BY_PREFIX[second].label_for(method)}",
                    f"{value:+.2f}",
                    f"[{low:+.2f}, {high:+.2f}]",
                    f"{metrics[f'{pair}/lost_images']:.0f} / {metrics[f'{pair}/won_images']:.0f}",
                    f"{metrics[f'{pair}/{metric.test}_holm']:.2g}",
                ]
            )
    return _table(["test images, in pairs", metric.step, "95 % interval", "lost / won", "p"], rows, style)


def _table(headings: list[str], rows: list[list[str]], style: str) -> str:
    align = ("left", *["right"] * (len(headings) - 1))
    return tabulate(rows, headings, tablefmt=style, disable_numparse=True, colalign=align)


def in_words(metrics: Mapping[str, float], metric: Metric = ACCURACY, method: str = "qat") -> str:
    """What the numbers mean: whether there is a drop that is no chance, whether QAT was worth it, what is wrong."""
    p = metrics[f"int8_vs_fp32/{metric.test}_holm"]
    if 1 in (metrics.get("fp32/named_classes"), metrics.get("int8/named_classes")):
        verdict = "nothing to compare, as the lines about one class say"
    elif p >= SIGNIFICANCE:
        verdict = f"no difference that these images show (p = {p:.2g})"
    else:
        verdict = f"int8 is {'worse' if metrics[metric.of('drop')] > 0 else 'better'}, beyond chance (p = {p:.2g})"
    one_class = [
        f"{form.label_for(method)} names one class for every test image: its accuracy is that class's share, and "
        "compares to nothing"
        for form in FORMS
        if metrics.get(f"{form.prefix}/named_classes") == 1
    ]
    return "\n".join([f"int8 against fp32: {verdict}", *_worth_of_qat(metrics, metric), *one_class])


def _worth_of_qat(metrics: Mapping[str, float], metric: Metric) -> list[str]:
    """Whether training gained anything over post-training quantization, where it began, on the validation part."""
    if not {f"qat/start_val_int8_{metric.name}", "qat/seconds"} <= metrics.keys():
        return []
    start, kept = (metrics[f"qat/{which}_val_int8_{metric.name}"] for which in ("start", "kept"))
    took = f"in {_duration(metrics['qat/start_seconds'])}; QAT took {_duration(metrics['qat/seconds'])}"
    if metrics["qat/kept_epoch"] == 0:
        return [f"no epoch of QAT was better on validation than its start, which is kept: PTQ reaches the same {took}"]
    p = metrics[f"qat/val_{metric.test}"]
    gain = f"{metric.drop(kept, start) + 0.0:+.2f} {metric.step} on validation over PTQ, its start"
    if p >= SIGNIFICANCE:
        return [f"QAT gains {gain}, no more than chance (p = {p:.2g}): PTQ reaches the same {took}"]
    return [f"QAT gains {gain}, beyond chance (p = {p:.2g}), in {_duration(metrics['qat/seconds'])}"]


def _duration(seconds: float) -> str:
    return f"{seconds:.1f} s" if seconds < 100 else f"{seconds:.0f} s"


def _images(count: float) -> str:
    return f"{count:.0f} image{'' if count == 1 else 's'}"


def conditions(evaluate: EvaluateConfig, metrics: Mapping[str, float], cpu: str, metric: Metric = ACCURACY) -> str:
    """On how much the values of the tables rest, and how the latencies were taken."""
    largest = metrics.get("test_largest_class_pct")
    of_largest = "" if largest is None else f", {largest:.1f} % of them of the largest class"
    intervals = (
        "Wilson's, and of changes Tango's for pairs; p: exact McNemar"
        if metric.is_share
        else "Student's t, and of changes that of the differences; p: sign flips"
    )
    threads = f"{evaluate.threads} thread{'s' if evaluate.threads > 1 else ''}"
    return (
        f"test: {_images(metrics['test_images'])}{of_largest}; 95 % intervals: {intervals}, Holm\n"
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
