"""The gate: whether a model keeps every limit that was asked for, by intervals and never by a value alone."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from pipeline.decision import measured, recorded
from pipeline.decision.subject import Subject
from pipeline.decision.verdict import Criterion
from pipeline.host.errors import UserError
from pipeline.host.machine import Machine
from pipeline.runtimes.exported import ExportedModel
from pipeline.settings.config import BenchmarkConfig


@dataclass(frozen=True)
class Limits:
    """What a model may lose, take and weigh at most; None: whatever it likes."""

    drop_pct: float | None
    latency_ratio: float | None
    latency_ms: float | None
    size_mb: float | None

    @property
    def of_models(self) -> tuple[float | None, ...]:
        """Those of an exported model, where there is one."""
        return self.latency_ratio, self.latency_ms, self.size_mb


def criteria(
    this: Subject, that: Subject | None, limits: Limits, images: Path | None, max_seconds: float, machine: Machine
) -> Iterator[Criterion]:
    """Each limit with its verdict, and what fails whatever the limits are.

    Args:
        that: what `this` is held against.
        images: where accuracy is measured anew, of both; None: the recorded drop is judged.
        max_seconds: that measuring latencies may take.

    Raises:
        UserError: when a number is not recorded, or a file cannot be used.
    """
    if this.run is not None:
        yield from recorded.one_class(this.run)
    if images is not None and that is not None and limits.drop_pct is not None:
        yield from measured.drop(_model(this), _model(that), images, limits.drop_pct, machine)
    elif limits.drop_pct is not None:
        yield recorded.drop(this, limits.drop_pct)
    yield from _latencies(this, that, limits, BenchmarkConfig(max_seconds=max_seconds), machine)
    if limits.size_mb is not None:
        yield recorded.size(this, limits.size_mb) if this.model is None else measured.size(this.model, limits.size_mb)


def _model(subject: Subject) -> ExportedModel:
    if subject.model is None:
        raise UserError(f"{subject.told}: the run has logged no exported model; allowed with --images: one that has")
    return subject.model


def _latencies(
    this: Subject, that: Subject | None, limits: Limits, settings: BenchmarkConfig, machine: Machine
) -> Iterator[Criterion]:
    """Of files, measured anew in one loop; else what is recorded."""
    timed = {}
    if this.model is not None and that is not None and that.model is not None and limits.latency_ratio is not None:
        timed = {"this": this.model, "that": that.model}
    elif this.model is not None and limits.latency_ms is not None:
        timed = {"this": this.model}
    passes, hint = measured.times(timed, settings, machine) if timed else ({}, "")
    if limits.latency_ratio is not None and that is not None:
        if "that" in passes:
            yield measured.latency_ratio(passes["this"], passes["that"], hint, limits.latency_ratio)
        else:
            yield recorded.latency_ratio(this, that, limits.latency_ratio)
    if limits.latency_ms is not None:
        if "this" in passes:
            yield measured.latency_of(passes["this"], hint, limits.latency_ms)
        else:
            yield recorded.latency(this, limits.latency_ms)
