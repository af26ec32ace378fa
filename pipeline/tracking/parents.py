"""The parent run of a sweep, and what became of its children."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipeline.host import terminal
from pipeline.host.errors import UserError
from pipeline.settings.config import TrackingConfig
from pipeline.settings.store_address import is_server
from pipeline.tracking.channels import Channel, channel_to
from pipeline.tracking.delivery import thing
from pipeline.tracking.leftovers import send_leftover
from pipeline.tracking.outbox import of_run
from pipeline.tracking.pages import way_to_view
from pipeline.tracking.patience import few_retries, one_try, waiting
from pipeline.tracking.store import asking, connect, short_name, store_uri, tell_unused_store
from pipeline.tracking.views import of_sweep

JOB_TAG = "sweep.job"
SWEEP_TAG = "sweep.id"
_FINISHED = "FINISHED"


@dataclass(frozen=True)
class Summary:
    """What a sweep's comparison says, to be kept with its parent run.

    Attributes:
        markdown: becomes the run's description.
        files: the comparison's.
        tags: the first row of the table.
        metrics: over seeds.
    """

    markdown: str
    files: Sequence[Path] = ()
    tags: Mapping[str, str] = field(default_factory=dict)
    metrics: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Parent:
    """The parent run of a sweep: its id, and what to type and open to see its jobs (empty where no browser can)."""

    run_id: str
    way_to_jobs: str


def open_parent(config: TrackingConfig, outputs: Path, sweep_id: str, name: str, varying: Sequence[str]) -> Parent:
    """The parent run of a sweep, made or, for a sweep that goes on, taken up again; its experiment gets its view.

    Args:
        config: which store.
        outputs: the folder of the default store.
        sweep_id: of the sweep.
        name: of the sweep, and of its run.
        varying: the parameters that the jobs differ in.

    Raises:
        UserError: when the store cannot be opened.
    """
    import mlflow

    tell_unused_store(config, outputs)
    experiment = connect(mlflow, config, outputs)
    run_id = _parent_run(mlflow, store_uri(config, outputs), experiment, sweep_id, name)
    view = of_sweep(sweep_id, name, run_id, varying)
    with asking(mlflow, store_uri(config, outputs), "the sweep's view cannot be kept"), few_retries():
        mlflow.MlflowClient().set_experiment_tag(experiment, view.tag, view.value)
    return Parent(run_id, way_to_view(config, outputs, experiment, view.key))


def _parent_run(mlflow: Any, uri: str, experiment: str, sweep_id: str, name: str) -> str:
    with asking(mlflow, uri, "the sweep's run cannot be opened"), few_retries():
        client = mlflow.MlflowClient()
        found = client.search_runs([experiment], f"tags.`{SWEEP_TAG}` = '{sweep_id}'", max_results=1)
        if found:
            client.update_run(found[0].info.run_id, status="RUNNING")
            return str(found[0].info.run_id)
    with asking(mlflow, uri, "the sweep's run cannot be made"), one_try():
        short = short_name(name) if is_server(uri) else name
        return str(client.create_run(experiment, run_name=short, tags={SWEEP_TAG: sweep_id}).info.run_id)


def close_parent(
    config: TrackingConfig, outputs: Path, run_id: str, name: str, status: str, summary: Summary | None = None
) -> None:
    """Keep the summary with a parent run and end it as FINISHED, FAILED or KILLED.

    A server that is away gets it later: it stays in the outbox.
    """
    channel = channel_to(store_uri(config, outputs), outputs, run_id, name, config.patience_s)
    try:
        if summary is not None:
            _say(channel, summary)
    finally:
        channel.close(status, config.patience_s)


def _say(channel: Channel, summary: Summary) -> None:
    channel.put(thing("tags", values={"mlflow.note.content": summary.markdown, **summary.tags}))
    for metric, value in summary.metrics.items():
        channel.put(thing("metric", name=metric, value=float(value), step=None))
    for path in summary.files:
        channel.put(thing("file", path=str(path)))


def mark_killed(config: TrackingConfig, outputs: Path, parent_run_id: str, alive: set[str]) -> int:
    """Mark the children that say RUNNING, except those of the jobs in `alive`, as KILLED; how many.

    One that has said more than the server knows, because it was away, has that sent first.

    Raises:
        UserError: when the store cannot be asked.
    """
    return _mark_killed(config, outputs, parent_run_id, lambda job: job not in alive)


def mark_job_killed(config: TrackingConfig, outputs: Path, parent_run_id: str, job: str) -> int:
    """Mark the runs of one job that say RUNNING as KILLED; how many. Only whoever holds the job's lock may.

    Raises:
        UserError: when the store cannot be asked, a server that is away not for as long as a job waits for it.
    """
    uri = store_uri(config, outputs)
    return waiting(
        uri, config.patience_s, lambda: _mark_killed(config, outputs, parent_run_id, lambda other: other == job)
    )


def _mark_killed(
    config: TrackingConfig, outputs: Path, parent_run_id: str, is_dead: Callable[[str | None], bool]
) -> int:
    import mlflow

    experiment = connect(mlflow, config, outputs)
    count = 0
    with asking(mlflow, store_uri(config, outputs), "the sweep's runs cannot be read"), few_retries():
        client = mlflow.MlflowClient()
        where = f"tags.mlflow.parentRunId = '{parent_run_id}' and attributes.status = 'RUNNING'"
        for run in client.search_runs([experiment], where):
            if not is_dead(run.data.tags.get(JOB_TAG)):
                continue
            outbox = of_run(outputs, run.info.run_id)
            if outbox is not None:
                count += outbox.last_status() is None
                left = send_leftover(outbox, store_uri(config, outputs))
                if left.in_the_way:
                    terminal.warn(f"run {left.name}: {left.in_the_way}")
            else:
                client.set_terminated(run.info.run_id, "KILLED")
                count += 1
    return count


def is_finished(config: TrackingConfig, outputs: Path, run_id: str | None) -> bool:
    """Whether the store has this run, and it ended well; a server that is away is taken to have it."""
    import mlflow

    if run_id is None:
        return False
    outbox = of_run(outputs, run_id)
    if outbox is not None:
        status = outbox.last_status()
        if outbox.is_there:
            return status == _FINISHED
    uri = store_uri(config, outputs)
    try:
        connect(mlflow, config, outputs)
        with few_retries():
            info = mlflow.MlflowClient().get_run(run_id).info
            return str(info.status) == _FINISHED and info.lifecycle_stage == "active"
    except mlflow.exceptions.MlflowException as error:
        # No such run, where the store was removed since; a server says so.
        if is_server(uri) and error.error_code != "RESOURCE_DOES_NOT_EXIST":
            terminal.warn(f"the tracking server {uri} cannot be asked for run {run_id}, which is taken to be there")
            return True
        return False
    except UserError as error:
        if not is_server(uri):
            raise
        terminal.warn(f"{error}; run {run_id} is taken to be there")
        return True
