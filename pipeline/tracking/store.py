"""Which MLflow store: opening it, creating it whole, and noticing in seconds that a server is not there."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock

from pipeline.config import TrackingConfig
from pipeline.errors import UserError
from pipeline.files import in_project, write_and_rename

_SQLITE = "sqlite:///"
_DATABASE = "mlflow.db"
_ARTIFACTS = "mlartifacts"
_RETRIES = "MLFLOW_HTTP_REQUEST_MAX_RETRIES"
_BARS = "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR"
# Lets the MLflow UI open the experiment as model training, with its charts, instead of as GenAI.
_KIND = {"mlflow.experimentKind": "custom_model_development"}


def store_uri(config: TrackingConfig, outputs: Path) -> str:
    """The store that is asked for, a SQLite file resolved against the project root, or the one under `outputs`."""
    uri = config.uri or f"{_SQLITE}{outputs / _DATABASE}"
    return f"{_SQLITE}{in_project(uri.removeprefix(_SQLITE))}" if uri.startswith(_SQLITE) else uri


def quiet() -> None:
    """Silence what MLflow and its libraries say of their own doings."""
    for chatty in ("mlflow", "alembic"):
        logging.getLogger(chatty).setLevel(logging.WARNING)
    logging.getLogger("urllib3.connectionpool").setLevel(logging.ERROR)
    logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)  # prints the traceback of what it raises too


@contextmanager
def silence() -> Iterator[None]:
    """Silence even MLflow's warnings, and its progress bars: for what is known to work as it is done here."""
    logger, before = logging.getLogger("mlflow"), os.environ.get(_BARS)
    level = logger.level
    logger.setLevel(logging.ERROR)
    os.environ[_BARS] = "false"
    try:
        yield
    finally:
        logger.setLevel(level)
        _restore(_BARS, before)


def connect(mlflow: Any, config: TrackingConfig, outputs: Path) -> str:
    """Point mlflow at the store, and give the id of the experiment, created where it is missing."""
    quiet()
    uri = store_uri(config, outputs)
    own_store = uri.startswith(_SQLITE)
    outputs.mkdir(parents=True, exist_ok=True)
    try:
        mlflow.set_tracking_uri(uri)
        with FileLock(outputs / ".mlflow.lock"), few_retries():
            if own_store:
                _create_store(mlflow, Path(uri.removeprefix(_SQLITE)))
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
def few_retries() -> Iterator[None]:
    """Let a server that is not there be noticed in seconds, before any work, instead of in minutes."""
    before = os.environ.get(_RETRIES)
    os.environ.setdefault(_RETRIES, "2")
    try:
        yield
    finally:
        _restore(_RETRIES, before)


def _restore(variable: str, before: str | None) -> None:
    if before is None:
        os.environ.pop(variable, None)
    else:
        os.environ[variable] = before
