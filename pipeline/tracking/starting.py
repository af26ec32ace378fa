"""Starting a run in its store: once, also where a server answers too late to be heard.

A run that is wholly cached is not started: it points to the one that has its result already.
"""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.host.interruption import INTERRUPTIONS, deferred, undisturbed
from pipeline.host.redaction import mask_text
from pipeline.settings.config import TrackingConfig
from pipeline.settings.store_address import is_server
from pipeline.tracking.channels import Channel, Direct, Posted
from pipeline.tracking.failures import asking, waiting
from pipeline.tracking.living import Living
from pipeline.tracking.outbox import Address
from pipeline.tracking.pages import run_page
from pipeline.tracking.parents import JOB_TAG
from pipeline.tracking.store import Opened, connect, short_name, store_uri
from pipeline.tracking.views import COLOR_TAG, color

PARENT_TAG = "mlflow.parentRunId"
# A tag that one run alone has.
_MARK = "run.mark"
_MAX_PARAM_LENGTH = 6000
# Settings that say where a result goes and whether it is made again, not what it is.
_ASIDE = ("outputs", "force", "tracking", "register")
_MANY = 100


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


def start(config: TrackingConfig, outputs: Path, record: RunRecord) -> tuple[Channel, str]:
    """Start a run; gives the way to it, and its experiment's id.

    Raises:
        UserError: when the tracking store cannot be opened. The job of a sweep waits for a server that is away.
    """
    from mlflow.tracking.context import registry

    store = connect_patiently(config, outputs, record)
    name = short_name(mask_text(config.run_name or record.name))
    tags = {**record.tags, COLOR_TAG: color(record.tags.get("backend", ""), name), _MARK: uuid.uuid4().hex}
    if record.parent_run_id is not None:
        tags[PARENT_TAG] = record.parent_run_id
    tags = registry.resolve_tags(tags)
    channel = waiting(store.uri, config.patience_s, lambda: _begin(config, outputs, store, name, tags))
    return channel, store.experiment


def connect_patiently(config: TrackingConfig, outputs: Path, record: RunRecord) -> Opened:
    """Open the store of a run, which waits for one that is locked; a job also for a server that its sweep has seen."""
    uri = store_uri(config, outputs)
    waits = record.parent_run_id is not None or not is_server(uri)
    return waiting(uri, config.patience_s if waits else 0, lambda: connect(config, outputs))


def _begin(config: TrackingConfig, outputs: Path, store: Opened, name: str, tags: Mapping[str, str]) -> Channel:
    """Begin a run; in a store that is a file of this machine, those whose process is gone become KILLED."""
    client = store.client
    living = None if is_server(store.uri) else Living(outputs, store.uri)
    begun: list[Channel] = []
    with asking(store.uri, "no run can be started"), nullcontext() if living is None else living.door():
        if living is not None:
            living.settle(client)
        try:
            with deferred():  # a run that has begun is known here
                # The server may have made it when it was asked before, and answered too late.
                made = client.search_runs([store.experiment], f"tags.`{_MARK}` = '{tags[_MARK]}'")
                run = made[0] if made else client.create_run(store.experiment, tags=tags, run_name=name)
                run_id = run.info.run_id
                if living is not None:
                    begun.append(Direct(client, run_id, config.patience_s, living.hold(run_id)))
                else:
                    page = run_page(store.uri, store.experiment, run_id)
                    begun.append(Posted(outputs, client, Address(store.uri, run_id, name), page))
        except INTERRUPTIONS:
            with undisturbed():
                for channel in begun:
                    channel.close("KILLED", 0)
            raise
    return begun[0]


@dataclass(frozen=True)
class Earlier:
    """A run that was there before: its id, name, page in a browser (may be empty) and experiment's id."""

    run_id: str
    name: str
    page: str
    experiment: str


def find_earlier(config: TrackingConfig, outputs: Path, record: RunRecord) -> Earlier | None:
    """The newest finished run with the artifacts, stages and settings of `record`.

    A job's must be under the same sweep, and one that was asked for by `tracking.run_name` must have that name.

    Raises:
        UserError: when the tracking store cannot be asked.
    """
    if not config.enabled:
        return None
    artifacts, settings = _artifacts(record.tags), _settings(record.logged_parameters())
    wanted = dict(artifacts)
    if record.parent_run_id is not None:
        wanted |= {PARENT_TAG: record.parent_run_id, JOB_TAG: record.tags[JOB_TAG]}
    tags = [f"tags.`{tag}` = '{text}'" for tag, text in wanted.items()]
    store = connect_patiently(config, outputs, record)
    with asking(store.uri, "earlier runs cannot be read"):
        where = " and ".join(["attributes.status = 'FINISHED'", *tags])
        found = store.client.search_runs([store.experiment], where, max_results=_MANY)
    name = short_name(mask_text(config.run_name)) if config.run_name is not None else None
    for run in found:
        run_id, called = run.info.run_id, run.info.run_name
        # MLflow adds to the parameters of a run what a model that it logs is configured with.
        same = _artifacts(run.data.tags) == artifacts and settings.items() <= _settings(run.data.params).items()
        if same and name in (None, called):
            return Earlier(run_id, called, run_page(store.uri, store.experiment, run_id), store.experiment)
    return None


def _artifacts(tags: Mapping[str, str]) -> dict[str, str]:
    return {name: text for name, text in tags.items() if name.startswith("artifact.")}


def _settings(parameters: Mapping[str, str]) -> dict[str, str]:
    return {name: text for name, text in parameters.items() if name.split(".")[0] not in _ASIDE}
