"""What the store has recorded of runs, held against limits."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping

from pipeline.decision.subject import Subject
from pipeline.decision.verdict import Criterion, Verdict, judge
from pipeline.host.errors import UserError
from pipeline.measure.latency import Interval
from pipeline.measure.statistics import images_needed
from pipeline.reports.tracked_run import TrackedRun
from pipeline.runtimes import registry

# Tags of a run: what latencies of equal threads depend on besides the model and its runtime.
_MACHINE = ("cpu", "cpu_instructions", "torch_version")


def drop(subject: Subject, limit: float) -> Criterion:
    """What int8 loses against fp32, on the test part.

    Raises:
        UserError: when it is not recorded.
    """
    if subject.run is None:
        raise UserError(
            f"{subject.told}: no run of it is in a store, and hence no drop; allowed: --images with --against, which "
            "measure it"
        )
    metric, metrics = subject.run.metric, subject.run.metrics
    names = [metric.of(what) for what in ("drop", "drop_ci_low", "drop_ci_high")]
    for name in names:
        if name not in metrics:
            raise UserError(f"{subject.told}: its run has no {name}; allowed: a run with the stage evaluate")
    value, low, high = (metrics[name] for name in names)
    verdict, images = judge(low, high, limit), round(metrics["test_images"])
    evidence = (
        f"the drop from fp32 to int8 is {value:.2f} {metric.step}, 95 % interval [{low:.2f}, {high:.2f}], "
        f"limit {limit:g}, on {images:,} test images"
    )
    if verdict is Verdict.UNKNOWN and metric.is_share:
        apart = metrics["int8_vs_fp32/won_images"] + metrics["int8_vs_fp32/lost_images"]
        evidence += f"; {more_images(limit, round(apart), images)}"
    elif verdict is Verdict.UNKNOWN:
        evidence += "; more test images narrow the interval"
    return Criterion("max-drop-pct", verdict, evidence)


def more_images(limit: float, apart: int, images: int) -> str:
    """How many images would tell, of two models of which one alone is right on `apart` of so many."""
    needed = images_needed(limit, apart / images)
    if needed is None:
        return "no number of images shows that nothing is lost: a limit above 0 can be shown"
    if needed <= images:
        return f"the drop is too near the limit for {images:,} images"
    return (
        f"one of the two alone is right on {apart:,} of them: about {needed:,} such images would show the limit to be "
        "kept, if nothing is lost in truth"
    )


def one_class(run: TrackedRun) -> Iterator[Criterion]:
    """That int8 names one class for every image, where it does: no drop and no latency makes it good."""
    if run.metrics.get("int8/named_classes") == 1:
        yield Criterion("classes", Verdict.FAILS, "int8 is constant: it names one class for every test image")


def latency(subject: Subject, limit: float) -> Criterion:
    """The median of int8 at batch 1, on the machine of the run.

    Raises:
        UserError: when it is not recorded.
    """
    run, name = _numbers(subject), "max-latency-ms"
    metrics = run.metrics
    for runtime in registry():
        found = _latency(metrics, runtime)
        if found is not None:
            value, low, high = found
            evidence = (
                f"{value:.3f} ms, 95 % interval [{low:.3f}, {high:.3f}], limit {limit:g}, at batch 1 on 1 thread, "
                f"{runtime}, recorded on {run.tags.get('cpu', 'an unknown processor')}"
            )
            return Criterion(name, judge(low, high, limit), evidence)
    if "int8/latency_ms" not in metrics:
        raise UserError(f"{subject.told}: its run has no int8/latency_ms; allowed: a run with the stage evaluate")
    evidence = (
        f"{metrics['int8/latency_ms']:.3f} ms, no interval, limit {limit:g}; a run with the stage benchmark has one"
    )
    return Criterion(name, Verdict.UNKNOWN, evidence)


def latency_ratio(this: Subject, that: Subject, limit: float) -> Criterion:
    """How long a run's model takes, over that of another: where both were measured alike, else it cannot be told.

    The two were not measured turn by turn: how the machine has drifted between them is in no interval.
    """
    name = "max-latency-ratio"
    if this.run is None or that.run is None:
        lacking = this if this.model is None else that
        return Criterion(
            name, Verdict.UNKNOWN, f"limit {limit:g}; {lacking.told}: the run has logged no exported model"
        )
    for runtime in registry():
        first, second = _latency(this.run.metrics, runtime), _latency(that.run.metrics, runtime)
        if first is None or second is None:
            continue
        for tag in (*_MACHINE, *(f"{module}_version" for module in registry()[runtime].modules if module != "torch")):
            one, other = this.run.tags.get(tag), that.run.tags.get(tag)
            if one is None or one != other:
                return Criterion(name, Verdict.UNKNOWN, f"limit {limit:g}; measured otherwise: {tag} {one} and {other}")
        value, low, high = _ratio(first, second)
        evidence = (
            f"{value:.3f} times as long, 95 % interval [{low:.3f}, {high:.3f}], limit {limit:g}, at batch 1 on 1 "
            f"thread, {runtime}, of medians that were recorded apart"
        )
        return Criterion(name, judge(low, high, limit), evidence)
    reason = "no runtime has a recorded interval in both: runs with the stages export and benchmark have"
    return Criterion(name, Verdict.UNKNOWN, f"limit {limit:g}; {reason}")


def size(subject: Subject, limit: float) -> Criterion:
    """How large the exported file is, or else the weights.

    Raises:
        UserError: when neither is recorded.
    """
    metrics = _numbers(subject).metrics
    for name in (*(f"{runtime}/int8/file_mb" for runtime in registry()), "int8/size_mb"):
        if name in metrics:
            value = metrics[name]
            return Criterion("max-size-mb", judge(value, value, limit), f"{value:.2f} MB ({name}), limit {limit:g}")
    raise UserError(f"{subject.told}: its run has no int8/size_mb; allowed: a run with the stage evaluate")


def _numbers(subject: Subject) -> TrackedRun:
    assert subject.run is not None  # what has no run has a file, which is measured
    return subject.run


def _latency(metrics: Mapping[str, float], runtime: str) -> Interval | None:
    names = [f"{runtime}/int8/latency{what}_ms" for what in ("", "_ci_low", "_ci_high")]
    if not all(name in metrics for name in names):
        return None
    value, low, high = (metrics[name] for name in names)
    return value, low, high


def _ratio(first: Interval, second: Interval) -> Interval:
    """Of two medians that are independent, and whose logarithms have symmetric intervals."""
    middle = math.log(first[0] / second[0])
    reach = math.hypot(*(math.log(high / low) / 2 for _, low, high in (first, second)))
    return math.exp(middle), math.exp(middle - reach), math.exp(middle + reach)
