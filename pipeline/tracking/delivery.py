"""The things that a run says, and saying them to a store.

A thing is a dictionary that JSON can hold: its `kind`, the time `at` (milliseconds since 1970) and what belongs to the
kind. Saying one twice leaves what saying it once does: MLflow keeps a metric's point once for its time, step and
value, and the other kinds replace what was there. An outbox counts on that.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

from pipeline.tracking.models import keep_with_run

Thing = dict[str, Any]

METRIC, STATUS, FILE, MODEL = "metric", "status", "file", "model"
# What belongs to each kind, as JSON has it.
_FIELDS: Mapping[str, Mapping[str, Any]] = {
    METRIC: {"name": str, "value": int | float, "step": int | None},
    "params": {"values": dict},
    "tags": {"values": dict},
    "dataset": {"name": str, "digest": str, "origin": str},
    "text": {"content": str, "name": str},
    FILE: {"path": str},
    MODEL: {
        "path": str,
        "runtime": str,
        "threads": int,
        "engine": str,
        "outputs": str,
        "register": dict | None,
        "candidate": dict | None,
    },
    "alone": {"mark": str},
    STATUS: {"status": str},
}
# Why the server did not take a thing, where it is kept for later.
REFUSED = "refused"
# In milliseconds since 1970: beyond what a server's database holds, a run could not be ended.
_END_OF_TIME = 2**53
# A tag that one run alone has.
MARK = "run.mark"
# How many points MLflow takes in one request.
MAX_POINTS = 1000
_MAX_PARAMS = 100


def thing(kind: str, **content: Any) -> Thing:
    """A thing to say, said now."""
    return {"kind": kind, "at": time.time_ns() // 1_000_000, **content}


def is_thing(content: Any) -> bool:
    """Whether what was read is a thing of a known kind, with all that belongs to it and nothing else."""
    if not isinstance(content, dict) or not isinstance(content.get("kind"), str) or content["kind"] not in _FIELDS:
        return False
    fields = {"kind": str, "at": int, **_FIELDS[content["kind"]]}
    if content.keys() - {REFUSED} != fields.keys():
        return False
    typed = all(isinstance(content[name], allowed) for name, allowed in fields.items())
    return typed and 0 <= content["at"] < _END_OF_TIME


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
        case "alone":
            _delete_twins(client, run_id, one["mark"])
        case "status":
            client.set_terminated(run_id, one["status"], one["at"])
        case other:
            raise ValueError(f"'{other}' is nothing that a run says")
    return ""


def marked_runs(client: Any, experiment: str, mark: str) -> list[Any]:
    """The runs that were created with this mark: one, or more where a server's answer was not heard."""
    return list(client.search_runs([experiment], f"tags.`{MARK}` = '{mark}'"))


def _delete_twins(client: Any, run_id: str, mark: str) -> None:
    own = client.get_run(run_id)
    if own.data.tags.get(MARK) != mark:
        return  # another run's, which a forged line would have deleted
    for run in marked_runs(client, own.info.experiment_id, mark):
        if run.info.run_id != run_id:
            client.delete_run(run.info.run_id)


def _dataset(name: str, digest: str, origin: str) -> Any:
    from mlflow.data.code_dataset_source import CodeDatasetSource
    from mlflow.data.meta_dataset import MetaDataset
    from mlflow.entities import DatasetInput, InputTag
    from mlflow.utils.mlflow_tags import MLFLOW_DATASET_CONTEXT

    dataset = MetaDataset(CodeDatasetSource(tags={"origin": origin}), name=name, digest=digest)  # type: ignore[abstract]
    return DatasetInput(dataset._to_mlflow_entity(), [InputTag(MLFLOW_DATASET_CONTEXT, "training")])
