"""A run as a tracking store has it: what the tracker reads back and the comparison compares."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field

from pipeline.tasks import ACCURACY, Metric

METRIC_TAG = "primary_metric"
"""The tag that says by what a run's models are judged: the fields of `Metric`."""


@dataclass(frozen=True)
class TrackedRun:
    """One run that was started, however it ended.

    Attributes:
        run_id: the store's id of it.
        name: the run's name, which need not be unique.
        status: FINISHED, FAILED, KILLED, RUNNING or SCHEDULED.
        parameters: the flattened configuration.
        metrics: the last value of each, by the names of the README.
        tags: processor, versions and the like.
    """

    run_id: str
    name: str
    status: str
    parameters: Mapping[str, str]
    metrics: Mapping[str, float]
    tags: Mapping[str, str] = field(default_factory=dict)

    @property
    def metric(self) -> Metric:
        """By what its models are judged; runs from before there were tasks by accuracy."""
        return Metric(**json.loads(self.tags[METRIC_TAG])) if METRIC_TAG in self.tags else ACCURACY
