"""The parent run of a sweep, and what became of its children."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from pipeline.host import terminal
from pipeline.host.errors import UserError
from pipeline.settings.config import TrackingConfig
from pipeline.settings.store_address import is_server
from pipeline.tasks import ACCURACY, Metric
from pipeline.tracking.channels import channel_to
from pipeline.tracking.delivery import thing
from pipeline.tracking.failures import asking, waiting
from pipeline.tracking.leftovers import send_leftover
from pipeline.tracking.living import tell_killed
from pipeline.tracking.outbox import of_run
from pipeline.tracking.pages import way_to_view
from pipeline.tracking.store import connect, short_name, store_uri, tell_unused_store
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


def open_parent(
    config: TrackingConfig, outputs: Path, sweep_id: str, name: str, varying: Sequence[str], metric: Metric = ACCURACY
) -> Parent:
    """The parent run of a sweep, made or, for a sweep that goes on, taken up again; its experiment gets its view.

    Args:
        config: which store.
        outputs: the folder of the default store.
        sweep_id: of the sweep.
        name: of the sweep, and of its run.
        varying: the parameters that the jobs differ in.
        metric: by which they are judged.

    Raises:
        UserError: when the store cannot be opened.
    """
    tell_unused_store(config, outputs)
    uri, client, experiment = connect(config, outputs)
    with asking(uri, "the sweep's run cannot be opened"):
        found = client.search_runs([experiment], f"tags.`{SWEEP_TAG}` = '{sweep_id}'", max_results=1)
        if found:
            run_id = str(found[0].info.run_id)
            client.update_run(run_id, status="RUNNING")
        else:
            made = client.create_run(experiment, run_name=short_name(name), tags={SWEEP_TAG: sweep_id})
            run_id = str(made.info.run_id)
        view = of_sweep(sweep_id, name, run_id, varying, metric)
        client.set_experiment_tag(experiment, view.tag, view.value)
    return Parent(run_id, way_to_view(config, outputs, experiment, view.key))


def close_parent(
    config: TrackingConfig, outputs: Path, run_id: str, name: str, status: str, summary: Summary | None = None
) -> None:
    """Keep the summary with a parent run and end it as FINISHED, FAILED or KILLED.

    A server that is away gets it later: it stays in the outbox.
    """
    channel = channel_to(store_uri(config, outputs), outputs, run_id, name, config.patience_s)
    try:
        if summary is not None:
            channel.put(thing("tags", values={"mlflow.note.content": summary.markdown, **summary.tags}))
            for metric, value in summary.metrics.items():
                channel.put(thing("metric", name=metric, value=float(value), step=None))
            for path in summary.files:
                channel.put(thing("file", path=str(path)))
    finally:
        channel.close(status, config.patience_s)


def mark_killed(
    config: TrackingConfig,
    outputs: Path,
    parent_run_id: str,
    is_dead: Callable[[str | None], bool],
    patience_s: float = 0,
) -> int:
    """Mark the children that say RUNNING, and whose job `is_dead`, as KILLED; says and gives how many.

    One that has said more than the server knows, because it was away, has that sent first. Waits `patience_s` for a
    server that is away.

    Raises:
        UserError: when the store cannot be asked.
    """
    where = f"tags.mlflow.parentRunId = '{parent_run_id}' and attributes.status = 'RUNNING'"

    def mark() -> int:
        uri, client, experiment = connect(config, outputs)
        count = 0
        with asking(uri, "the sweep's runs cannot be read"):
            for run in client.search_runs([experiment], where):
                if not is_dead(run.data.tags.get(JOB_TAG)):
                    continue
                outbox = of_run(outputs, run.info.run_id)
                if outbox is None:
                    client.set_terminated(run.info.run_id, "KILLED")
                    count += 1
                    continue
                count += outbox.last_status() is None
                left = send_leftover(outbox.folder, uri)
                if left.in_the_way:
                    terminal.warn(f"run {left.name}: {left.in_the_way}")
        return count

    count = waiting(store_uri(config, outputs), patience_s, mark)
    tell_killed(count)
    return count


def is_finished(config: TrackingConfig, outputs: Path, run_id: str | None) -> bool:
    """Whether the store has this run, and it ended well; a server that is away is taken to have it."""
    if run_id is None:
        return False
    outbox = of_run(outputs, run_id)
    status = outbox.last_status() if outbox is not None else None
    if status is not None:  # else all of it was sent, perhaps in this moment
        return status == _FINISHED
    try:
        uri, client, experiment = connect(config, outputs)
        with asking(uri, "the sweep's runs cannot be read"):
            where = f"attributes.run_id = '{run_id}' and attributes.status = '{_FINISHED}'"
            return bool(client.search_runs([experiment], where))
    except UserError as error:
        if not is_server(store_uri(config, outputs)):
            raise
        terminal.warn(f"{error}; run {run_id} is taken to be there")
        return True
