"""Starting a run in its store: once, also where a server answers too late to be heard."""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from pipeline.host.interruption import INTERRUPTIONS, deferred, undisturbed
from pipeline.host.redaction import mask_text
from pipeline.settings.config import TrackingConfig
from pipeline.settings.store_address import is_server
from pipeline.tracking.channels import Channel, Direct, Posted
from pipeline.tracking.delivery import MARK, marked_runs
from pipeline.tracking.living import Living
from pipeline.tracking.outbox import Address
from pipeline.tracking.pages import run_page
from pipeline.tracking.patience import one_try, waiting
from pipeline.tracking.store import asking, connect, short_name, store_uri
from pipeline.tracking.views import COLOR_TAG, color

_MAX_PARAM_LENGTH = 6000


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

    def logged_parameters(self) -> dict[str, str]:
        """The parameters as a store keeps them."""
        return {name: str(value)[:_MAX_PARAM_LENGTH] for name, value in self.parameters.items()}


class Begun(NamedTuple):
    """A run that has begun: the way to it, its experiment's id, and the mark that it alone has on its server."""

    channel: Channel
    experiment: str
    mark: str


def start(config: TrackingConfig, outputs: Path, record: RunRecord) -> Begun:
    """Start a run; its mark is empty where there is no server.

    Raises:
        UserError: when the tracking store cannot be opened. The job of a sweep waits for a server that is away.
    """
    import mlflow

    name, uri = mask_text(config.run_name or record.name), store_uri(config, outputs)
    experiment = waiting(uri, first_patience_s(config, record), lambda: connect(mlflow, config, outputs))
    tags = {**record.tags, COLOR_TAG: color(record.tags.get("backend", ""), name)}
    if is_server(uri):
        name, tags[MARK] = short_name(name), uuid.uuid4().hex
        if record.parent_run_id is not None:
            tags["mlflow.parentRunId"] = record.parent_run_id
        run_id = _create(mlflow, uri, config.patience_s, experiment, name, tags)
        address = Address(uri, run_id, name, run_page(uri, experiment, run_id))
        return Begun(Posted(outputs, address), experiment, tags[MARK])
    begin = partial(_begin_here, mlflow, config, outputs, record, experiment, name, tags)
    return Begun(waiting(uri, config.patience_s, begin), experiment, "")


def _begin_here(
    mlflow: Any,
    config: TrackingConfig,
    outputs: Path,
    record: RunRecord,
    experiment: str,
    name: str,
    tags: Mapping[str, str],
) -> Direct:
    """Begin a run in a store that is a file of this machine; marks those KILLED whose process is gone."""
    client, uri = mlflow.MlflowClient(), store_uri(config, outputs)
    living, begun = Living(outputs, uri), list[Direct]()
    with asking(mlflow, uri, "no run can be started"), living.door():
        living.settle(mlflow, client)
        try:
            with deferred():  # a run that has begun is known here
                started = mlflow.start_run(
                    experiment_id=experiment, run_name=name, tags=dict(tags), parent_run_id=record.parent_run_id
                )
                begun.append(Direct(client, started.info.run_id, config.patience_s, living.hold(started.info.run_id)))
        except INTERRUPTIONS:
            with undisturbed():
                for one in begun:
                    one.close("KILLED", 0)
            raise
    return begun[0]


def first_patience_s(config: TrackingConfig, record: RunRecord) -> float:
    """How long a run waits for its store before it begins: a job's sweep has seen that the server is there, and who has
    a file locked lets go of it."""
    here = config.uri is None or not is_server(config.uri)
    return config.patience_s if here or record.parent_run_id is not None else 0


def _create(mlflow: Any, uri: str, patience_s: float, experiment: str, name: str, own_tags: Mapping[str, str]) -> str:
    """Create the run on the server, with a mark by which a run is found whose creation was not heard of."""
    from mlflow.tracking.context import registry

    tags = registry.resolve_tags(own_tags)
    client = mlflow.MlflowClient()
    tries = 0

    def create() -> str:
        nonlocal tries
        tries += 1
        with asking(mlflow, uri, "no run can be started"), one_try():
            made = marked_runs(client, experiment, own_tags[MARK]) if tries > 1 else []
            return str((made or [client.create_run(experiment, run_name=name, tags=tags)])[0].info.run_id)

    return waiting(uri, patience_s, create)
