"""Starting a run in its store: once, also where a server answers too late to be heard."""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.config import TrackingConfig
from pipeline.interruption import INTERRUPTIONS, deferred, undisturbed
from pipeline.redaction import mask_text
from pipeline.store_address import is_server
from pipeline.tracking.channels import Channel, Direct, Posted
from pipeline.tracking.delivery import MARK, marked_runs
from pipeline.tracking.living import Living
from pipeline.tracking.outbox import Address
from pipeline.tracking.store import asking, connect, one_try, short_name, store_uri, waiting


@dataclass(frozen=True)
class RunRecord:
    """What is known of a run before it starts.

    Attributes:
        name: the run's name.
        parameters: the flattened configuration.
        tags: commit, versions, machine, backend and the like.
        config_yaml: the composed configuration.
        dataset: name, digest and origin of the data.
        parent_run_id: the run of the sweep that this one belongs to.
    """

    name: str
    parameters: Mapping[str, Any]
    tags: Mapping[str, str]
    config_yaml: str
    dataset: tuple[str, str, str]
    parent_run_id: str | None = None


def start(config: TrackingConfig, outputs: Path, record: RunRecord) -> tuple[Channel, str]:
    """Start a run; gives the way to it, and the mark that it alone has on its server (empty: there is no server).

    Raises:
        UserError: when the tracking store cannot be opened. The job of a sweep waits for a server that is away.
    """
    import mlflow

    name, uri = mask_text(config.run_name or record.name), store_uri(config, outputs)
    if is_server(uri):
        mark = uuid.uuid4().hex
        return Posted(outputs, _create(mlflow, config, outputs, record, Address(uri, "", short_name(name)), mark)), mark
    experiment = connect(mlflow, config, outputs)
    client = mlflow.MlflowClient()
    living, begun = Living(outputs, uri), list[Direct]()
    with asking(mlflow, uri, "no run can be started"), living.door():
        living.settle(mlflow, client)
        try:
            with deferred():  # a run that has begun is known here
                started = mlflow.start_run(
                    experiment_id=experiment, run_name=name, tags=dict(record.tags), parent_run_id=record.parent_run_id
                )
                begun.append(Direct(client, started.info.run_id, living.hold(started.info.run_id)))
        except INTERRUPTIONS:
            with undisturbed():
                for one in begun:
                    one.close("KILLED", 0)
            raise
    return begun[0], ""


def _create(
    mlflow: Any, config: TrackingConfig, outputs: Path, record: RunRecord, wanted: Address, mark: str
) -> Address:
    """Create the run on the server, with a mark by which a run is found whose creation was not heard of."""
    from mlflow.tracking.context import registry

    uri = wanted.uri
    is_job = record.parent_run_id is not None
    tags = registry.resolve_tags({**record.tags, MARK: mark})
    if record.parent_run_id is not None:
        tags["mlflow.parentRunId"] = record.parent_run_id
    # A server that is not there is told at once, but a job's sweep has seen it.
    experiment = waiting(uri, config.patience_s if is_job else 0, lambda: connect(mlflow, config, outputs))
    client = mlflow.MlflowClient()
    tries = 0

    def create() -> str:
        nonlocal tries
        tries += 1
        with asking(mlflow, uri, "no run can be started"), one_try():
            made = marked_runs(client, experiment, mark) if tries > 1 else []
            return str((made or [client.create_run(experiment, run_name=wanted.name, tags=tags)])[0].info.run_id)

    run_id = waiting(uri, config.patience_s, create)
    return Address(uri, run_id, wanted.name, f"{uri.rstrip('/')}/#/experiments/{experiment}/runs/{run_id}")
