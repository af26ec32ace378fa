"""Where results go: MLflow, or nowhere. The only module that imports mlflow.

The run takes its status from how the block ends: FINISHED, FAILED with the error as a tag, or KILLED
for an interruption. The default store is SQLite under `outputs`; its schema and its experiment are
created under a lock, because processes that do so at the same time destroy it.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from filelock import FileLock

from pipeline.config import TrackingConfig
from pipeline.errors import UserError
from pipeline.files import in_project, write_and_rename

_DATABASE = "mlflow.db"
_ARTIFACTS = "mlartifacts"
_MAX_PARAM_LENGTH = 6000
JOB_TAG = "sweep.job"
_SWEEP_TAG = "sweep.id"
_RETRIES = "MLFLOW_HTTP_REQUEST_MAX_RETRIES"
# Lets the MLflow UI open the experiment as model training, with its charts, instead of as GenAI.
_KIND = {"mlflow.experimentKind": "custom_model_development"}


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


class Tracker(Protocol):
    """Takes what a run has to say.

    Attributes:
        run_id: the run's id in the store, or None where nothing is tracked.
    """

    run_id: str | None

    def metric(self, name: str, value: float, step: int | None = None) -> None:
        """A number; `step` is the epoch of a curve's point."""

    def file(self, path: Path) -> None:
        """A file to keep with the run."""

    def text(self, content: str, name: str) -> None:
        """A small file to keep with the run, by its content."""

    def describe(self, markdown: str) -> None:
        """The run's description."""


class _Silent:
    run_id: str | None = None

    def metric(self, name: str, value: float, step: int | None = None) -> None: ...
    def file(self, path: Path) -> None: ...
    def text(self, content: str, name: str) -> None: ...
    def describe(self, markdown: str) -> None: ...


class _Mlflow:
    def __init__(self, mlflow: Any, run_id: str) -> None:
        self._mlflow = mlflow
        self.run_id: str | None = run_id

    def metric(self, name: str, value: float, step: int | None = None) -> None:
        self._mlflow.log_metric(name, value, step=step)

    def file(self, path: Path) -> None:
        self._mlflow.log_artifact(str(path))

    def text(self, content: str, name: str) -> None:
        self._mlflow.log_text(content, name)

    def describe(self, markdown: str) -> None:
        self._mlflow.set_tag("mlflow.note.content", markdown)


@contextmanager
def open_run(config: TrackingConfig, outputs: Path, record: RunRecord) -> Iterator[Tracker]:
    """Start a run and end it with the status that the block deserves.

    Raises:
        UserError: when the tracking store cannot be opened.
    """
    if not config.enabled:
        yield _Silent()
        return
    import mlflow

    experiment = _connect(mlflow, config, outputs)
    started = mlflow.start_run(
        experiment_id=experiment,
        run_name=config.run_name or record.name,
        tags=dict(record.tags),
        parent_run_id=record.parent_run_id,
    )
    try:
        mlflow.log_params({key: str(value)[:_MAX_PARAM_LENGTH] for key, value in record.parameters.items()})
        _log_dataset(mlflow, *record.dataset)
        mlflow.log_text(record.config_yaml, "config.yaml")
        yield _Mlflow(mlflow, started.info.run_id)
    except KeyboardInterrupt:
        mlflow.end_run("KILLED")
        raise
    except BaseException as error:
        mlflow.set_tag("error", f"{type(error).__name__}: {error}"[:_MAX_PARAM_LENGTH])
        mlflow.end_run("FAILED")
        raise
    else:
        mlflow.end_run("FINISHED")


def _connect(mlflow: Any, config: TrackingConfig, outputs: Path) -> str:
    """Point mlflow at the store, and give the id of the experiment, created where it is missing."""
    for chatty in ("mlflow", "alembic"):
        logging.getLogger(chatty).setLevel(logging.WARNING)
    logging.getLogger("urllib3.connectionpool").setLevel(logging.ERROR)
    uri = config.uri or f"sqlite:///{outputs / _DATABASE}"
    if uri.startswith("sqlite:///"):
        uri = f"sqlite:///{in_project(uri.removeprefix('sqlite:///'))}"
    own_store = uri.startswith("sqlite:///")
    outputs.mkdir(parents=True, exist_ok=True)
    try:
        mlflow.set_tracking_uri(uri)
        with FileLock(outputs / ".mlflow.lock"), _few_retries():
            if own_store:
                _create_store(mlflow, Path(uri.removeprefix("sqlite:///")))
            found = mlflow.get_experiment_by_name(config.experiment)
            if found is not None and found.lifecycle_stage == "active":
                return found.experiment_id
            location = (outputs / _ARTIFACTS).as_uri() if own_store else None
            return mlflow.create_experiment(config.experiment, artifact_location=location, tags=_KIND)
    except mlflow.exceptions.MlflowException as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"tracking.uri={uri}: experiment '{config.experiment}' cannot be opened: {reason}") from error


def _create_store(mlflow: Any, database: Path) -> None:
    """Create a SQLite store, complete or absent: one that is killed between its migrations cannot be opened again."""
    if not database.exists():
        database.parent.mkdir(parents=True, exist_ok=True)
        with write_and_rename(database) as temporary:
            mlflow.MlflowClient(f"sqlite:///{temporary}").search_experiments(max_results=1)


@contextmanager
def _few_retries() -> Iterator[None]:
    """Let a server that is not there be noticed in seconds, before any work, instead of in minutes."""
    before = os.environ.get(_RETRIES)
    os.environ.setdefault(_RETRIES, "2")
    try:
        yield
    finally:
        if before is None:
            del os.environ[_RETRIES]


def _log_dataset(mlflow: Any, name: str, digest: str, origin: str) -> None:
    from mlflow.data.code_dataset_source import CodeDatasetSource
    from mlflow.data.meta_dataset import MetaDataset

    source = CodeDatasetSource(tags={"origin": origin})
    dataset = MetaDataset(source, name=name, digest=digest)  # type: ignore[abstract]
    mlflow.log_input(dataset, context="training")


def open_parent(config: TrackingConfig, outputs: Path, sweep_id: str, name: str) -> str:
    """The parent run of a sweep, made or, for a sweep that goes on, taken up again; gives its id."""
    import mlflow

    experiment = _connect(mlflow, config, outputs)
    client = mlflow.MlflowClient()
    found = client.search_runs([experiment], f"tags.`{_SWEEP_TAG}` = '{sweep_id}'", max_results=1)
    if found:
        client.update_run(found[0].info.run_id, status="RUNNING")
        return str(found[0].info.run_id)
    return str(client.create_run(experiment, run_name=name, tags={_SWEEP_TAG: sweep_id}).info.run_id)


def close_parent(config: TrackingConfig, outputs: Path, run_id: str, status: str) -> None:
    """End a parent run as FINISHED, FAILED or KILLED."""
    import mlflow

    _connect(mlflow, config, outputs)
    mlflow.MlflowClient().set_terminated(run_id, status)


def mark_killed(config: TrackingConfig, outputs: Path, parent_run_id: str, alive: set[str]) -> int:
    """Mark the children that say RUNNING, except those of the jobs in `alive`, as KILLED; how many."""
    import mlflow

    experiment = _connect(mlflow, config, outputs)
    client = mlflow.MlflowClient()
    where = f"tags.mlflow.parentRunId = '{parent_run_id}' and attributes.status = 'RUNNING'"
    dead = [run for run in client.search_runs([experiment], where) if run.data.tags.get(JOB_TAG) not in alive]
    for run in dead:
        client.set_terminated(run.info.run_id, "KILLED")
    return len(dead)


def is_finished(config: TrackingConfig, outputs: Path, run_id: str | None) -> bool:
    """Whether the store has this run, and it ended well."""
    import mlflow

    _connect(mlflow, config, outputs)
    if run_id is None:
        return False
    try:
        return str(mlflow.MlflowClient().get_run(run_id).info.status) == "FINISHED"
    except mlflow.exceptions.MlflowException:  # no such run: the store was removed since
        return False
