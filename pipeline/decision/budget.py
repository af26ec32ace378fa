"""A rung against the budget: what it came to on validation, and what that says of each limit."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch

from pipeline.decision.verdict import Criterion, Verdict, judge
from pipeline.measure.pairs import difference
from pipeline.measure.statistics import images_needed, smallest_drop
from pipeline.run.artifact_store import Artifact
from pipeline.settings.decision import BudgetConfig
from pipeline.tasks import Metric
from pipeline.tasks.contract import Task

# How often, of networks that lose more than the budget, one may pass on any rung: in percent of all decisions.
ERROR_PCT = 5.0


def confidence_of(rung: int, backends: int) -> float:
    """The confidence of the two-sided interval by which a rung, counted from 0, is judged.

    A ladder stops at the first rung that passes, so each rung is one more chance to pass by luck. The chances are
    spent as a sum: half of `ERROR_PCT` on the first rung, half of what is left on each next one, divided among the
    backends that climb (Bonferroni's inequality; spending as of Lan and DeMets 1983, "Discrete sequential boundaries
    for clinical trials"). On one backend the first rung has the usual 95 % interval.
    """
    return 1 - 2 * ERROR_PCT / 100 / 2 ** (rung + 1) / backends


@dataclass(frozen=True)
class Measured:
    """What a rung came to.

    Attributes:
        drop, low, high: of the primary metric from fp32 to int8 on validation, with the interval of `confidence`.
        value, floor: of int8 on validation, and of always naming the largest class there (None: there are no classes).
        lost, won: validation images that fp32, or int8, alone gets right (or more nearly).
        images: of the validation part.
    """

    drop: float
    low: float
    high: float
    confidence: float
    lost: int
    won: int
    images: int
    speedup: float
    latency_ms: float
    size_mb: float
    value: float
    floor: float | None


def measured(metrics: Mapping[str, float], evaluated: Artifact, task: Task, confidence: float) -> Measured:
    """Of a run's metrics, and of what `evaluate` kept of the validation part."""
    with np.load(evaluated.folder / "predictions_val.npz", allow_pickle=False) as kept:
        decided = {name: torch.from_numpy(kept[name]) for name in ("labels", "fp32", "int8")}
    targets = decided["labels"]
    if not targets.is_floating_point():  # kept in the smallest type
        decided = {name: values if values.is_floating_point() else values.long() for name, values in decided.items()}
        targets = decided["labels"]
    apart = difference(
        task.primary, task.score(decided["int8"], targets), task.score(decided["fp32"], targets), confidence
    )
    ends = sorted(task.primary.drop(0.0, end) for end in (apart.low, apart.high))
    return Measured(
        drop=task.primary.drop(0.0, apart.value) + 0.0,
        low=ends[0],
        high=ends[1],
        confidence=confidence,
        lost=apart.lost,
        won=apart.won,
        images=len(targets),
        speedup=metrics["speedup"],
        latency_ms=metrics["int8/latency_ms"],
        size_mb=metrics["int8/size_mb"],
        value=metrics[f"val/int8_{task.primary.name}"],
        floor=metrics.get("val/largest_class_pct"),
    )


def criteria(found: Measured, budget: BudgetConfig, metric: Metric) -> list[Criterion]:
    """The limits that the budget sets, the drop first."""
    said = (
        f"{found.drop:+.2f} [{found.low:+.2f}, {found.high:+.2f}] {metric.step} on {found.images:,} validation "
        f"images, at most {budget.max_drop_pct:g}"
    )
    listed = [Criterion("drop", judge(found.low, found.high, budget.max_drop_pct), said)]
    if found.floor is not None and not metric.drop(found.floor, found.value) < 0:  # two that know nothing do not differ
        named = f"{metric.text(found.value)}, no better than always naming the largest class ({found.floor:.2f} %)"
        listed.append(Criterion("worth", Verdict.FAILS, named))
    for name, value, limit, unit, at_least in (
        ("speedup", found.speedup, budget.min_speedup, "times", True),
        ("latency", found.latency_ms, budget.max_latency_ms, "ms", False),
        ("size", found.size_mb, budget.max_size_mb, "MB", False),
    ):
        if limit is not None:
            kept = value >= limit if at_least else value <= limit
            words = f"{value:.2f} {unit}, {'at least' if at_least else 'at most'} {limit:g}"
            listed.append(Criterion(name, Verdict.PASSES if kept else Verdict.FAILS, words))
    return listed


def too_few_images(images: int, discordant_share: float, limit_pct: float, confidence: float) -> str | None:
    """Why so many validation images cannot show the budget to be kept, whatever is tried; None: they can.

    Args:
        discordant_share: of the images, those that only one of two models gets right; 0, before any is known.
    """
    smallest = smallest_drop(images, discordant_share, confidence)
    if smallest <= limit_pct:
        return None
    needed = images_needed(limit_pct, discordant_share, confidence)
    share = "even if int8 changes no decision" if discordant_share == 0 else f"as {100 * discordant_share:.2g} % differ"
    would = f"about {needed:,} would do for {limit_pct:g}" if needed is not None else "no number would do"
    return (
        f"with {images:,} validation images no drop below {smallest:.2g} points can be shown, {share}; {would} "
        "(dataset.validation_fraction, or more data)"
    )
