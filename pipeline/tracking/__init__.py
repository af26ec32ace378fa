"""Where results go: MLflow, or nowhere. The only package that imports mlflow; `reading.py` reads runs back.

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

_DATABASE = "mlflow.db"
_ARTIFACTS = "mlartifacts"
_MAX_PARAM_LENGTH = 6000
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
    """

    name: str
    parameters: Mapping[str, Any]
    tags: Mapping[str, str]
    config_yaml: str
    dataset: tuple[str, str, str]


class Tracker(Protocol):
    """Takes what a run has to say."""

    def metric(self, name: str, value: float, step: int | None = None) -> None:
        """A number; `step` is the epoch of a curve's point."""

    def file(self, path: Path) -> None:
        """A file to keep with the run."""

    def text(self, content: str, name: str) -> None:
        """A small file to keep with the run, by its content."""

    def describe(self, markdown: str) -> None:
        """The run's description."""


class _Silent:
    def metric(self, name: str, value: float, step: int | None = None) -> None: ...
    def file(self, path: Path) -> None: ...
    def text(self, content: str, name: str) -> None: ...
    def describe(self, markdown: str) -> None: ...


class _Mlflow:
    def __init__(self, mlflow: Any) -> None:
        self._mlflow = mlflow

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
    mlflow.start_run(experiment_id=experiment, run_name=config.run_name or record.name, tags=dict(record.tags))
    try:
        mlflow.log_params({key: str(value)[:_MAX_PARAM_LENGTH] for key, value in record.parameters.items()})
        _log_dataset(mlflow, *record.dataset)
        mlflow.log_text(record.config_yaml, "config.yaml")
        yield _Mlflow(mlflow)
    except KeyboardInterrupt:
        mlflow.end_run("KILLED")
        raise
    except BaseException as error:
        mlflow.set_tag("error", f"{type(error).__name__}: {error}"[:_MAX_PARAM_LENGTH])
        mlflow.end_run("FAILED")
        raise
    else:
        mlflow.end_run("FINISHED")


def store_uri(config: TrackingConfig, outputs: Path) -> str:
    """The store that is asked for, or the SQLite database under `outputs`."""
    return config.uri or f"sqlite:///{outputs / _DATABASE}"


def quiet() -> None:
    """Silence what MLflow and its libraries say of their own doings."""
    for chatty in ("mlflow", "alembic"):
        logging.getLogger(chatty).setLevel(logging.WARNING)
    logging.getLogger("urllib3.connectionpool").setLevel(logging.ERROR)


def _connect(mlflow: Any, config: TrackingConfig, outputs: Path) -> str:
    """Point mlflow at the store, and give the id of the experiment, created where it is missing."""
    quiet()
    uri = store_uri(config, outputs)
    own_store = config.uri is None
    outputs.mkdir(parents=True, exist_ok=True)
    try:
        mlflow.set_tracking_uri(uri)
        with FileLock(outputs / ".mlflow.lock"), few_retries():
            found = mlflow.get_experiment_by_name(config.experiment)
            if found is not None and found.lifecycle_stage == "active":
                return found.experiment_id
            location = (outputs / _ARTIFACTS).as_uri() if own_store else None
            return mlflow.create_experiment(config.experiment, artifact_location=location, tags=_KIND)
    except mlflow.exceptions.MlflowException as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"tracking.uri={uri}: experiment '{config.experiment}' cannot be opened: {reason}") from error


@contextmanager
def few_retries() -> Iterator[None]:
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
