"""The things that a run says, and saying them to a store.

A thing is a dictionary that JSON can hold: its `kind`, the time `at` (milliseconds since 1970) and what belongs to the
kind. Saying one twice leaves what saying it once does: MLflow keeps a metric's point once for its time, step and
value, and the other kinds replace what was there. An outbox counts on that.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from pipeline.tracking.models import keep_with_run

Thing = dict[str, Any]

METRIC, FILE, MODEL = "metric", "file", "model"
# How many of each MLflow takes in one request.
MAX_POINTS, _MAX_PARAMS = 1000, 100


def thing(kind: str, **content: Any) -> Thing:
    """A thing to say, said now."""
    return {"kind": kind, "at": time.time_ns() // 1_000_000, **content}


def deliver(client: Any, run_id: str, things: Sequence[Thing]) -> str:
    """Say one thing to the store, or many that are all metrics; gives what the user is told of it, if anything.

    Raises:
        Exception: what MLflow raises; `failures.http_status` tells what kind of failure it is.
    """
    from mlflow.entities import Metric, Param, RunTag

    if things[0]["kind"] == METRIC:
        points = [Metric(one["name"], one["value"], one["at"], one["step"] or 0) for one in things]
        client.log_batch(run_id, metrics=points)
        return ""
    (one,) = things
    match one["kind"]:
        case "params":
            params = [Param(key, value) for key, value in one["values"].items()]
            for start in range(0, len(params), _MAX_PARAMS):
                client.log_batch(run_id, params=params[start : start + _MAX_PARAMS])
        case "tags":
            client.log_batch(run_id, tags=[RunTag(key, value) for key, value in one["values"].items()])
        case "dataset":
            client.log_inputs(run_id, datasets=[_dataset(one["name"], one["digest"], one["origin"])])
        case "text":
            client.log_text(run_id, one["content"], one["name"])
        case "file":
            client.log_artifact(run_id, one["path"])
        case "model":
            return keep_with_run(client, run_id, one)
        case "status":
            client.set_terminated(run_id, one["status"], one["at"])
        case other:
            raise ValueError(f"'{other}' is nothing that a run says")
    return ""


def _dataset(name: str, digest: str, origin: str) -> Any:
    from mlflow.data.code_dataset_source import CodeDatasetSource
    from mlflow.data.meta_dataset import MetaDataset
    from mlflow.entities import DatasetInput, InputTag
    from mlflow.utils.mlflow_tags import MLFLOW_DATASET_CONTEXT

    dataset = MetaDataset(CodeDatasetSource(tags={"origin": origin}), name=name, digest=digest)  # type: ignore[abstract]
    return DatasetInput(dataset._to_mlflow_entity(), [InputTag(MLFLOW_DATASET_CONTEXT, "training")])
