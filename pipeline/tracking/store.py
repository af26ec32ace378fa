"""Which MLflow store: opening it, creating it whole, and noticing in seconds that a server is not there."""

from __future__ import annotations

import logging
import os
import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock

from pipeline.host import terminal
from pipeline.host.errors import UserError
from pipeline.host.faults import fault
from pipeline.host.files import in_project, write_and_rename
from pipeline.host.redaction import mask_text, refuse_credentials
from pipeline.settings.config import TrackingConfig
from pipeline.settings.store_address import check_sqlite, is_server
from pipeline.tracking.database import check_database, is_locked
from pipeline.tracking.failures import http_status, is_databases, passes, reason
from pipeline.tracking.inherited import forget
from pipeline.tracking.patience import ServerAway, few_retries, variables
from pipeline.tracking.views import results

CREDENTIALS = "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD"
# As conf/tracking/server.yaml has them.
SERVER_VARIABLE, _DEFAULT_SERVER = "MLFLOW_TRACKING_URI", "http://127.0.0.1:5000"
_SQLITE = "sqlite:///"
_DATABASE = "mlflow.db"
_ARTIFACTS = "mlartifacts"
_BARS = "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR"
# Lets the MLflow UI open the experiment as model training, with its charts, instead of as GenAI.
_KIND = {"mlflow.experimentKind": "custom_model_development"}
_MAX_NAME = 250


def store_uri(config: TrackingConfig, outputs: Path) -> str:
    """The store that is asked for, a SQLite file resolved against the project root, or the one under `outputs`.

    Raises:
        UserError: for a user and password in it, or a path that such an address cannot hold.
    """
    if config.uri is None:
        check_sqlite("outputs", str(outputs))
    uri = config.uri or f"{_SQLITE}{outputs / _DATABASE}"
    refuse_credentials("tracking.uri", uri)
    return _resolved(uri)


def _resolved(uri: str) -> str:
    return f"{_SQLITE}{in_project(uri.removeprefix(_SQLITE))}" if uri.startswith(_SQLITE) else uri


def tell_unused_store(config: TrackingConfig, outputs: Path, setting: str = "tracking=server") -> None:
    """Say that the environment names another store than is used, and the setting that would take it."""
    named, used = os.environ.get(SERVER_VARIABLE), store_uri(config, outputs)
    if named and not same_server(_resolved(named), used):
        terminal.warn(mask_text(f"{SERVER_VARIABLE}={named} is not used, but {used}; {setting} takes it"))


def configured_server() -> str:
    """The server of `tracking=server`, to which the user and password in the environment belong."""
    return os.environ.get(SERVER_VARIABLE) or _DEFAULT_SERVER


def check_credentials() -> None:
    """See that MLflow can send the user and password of the environment.

    Its server reads them as UTF-8 where runs are, and as ASCII where files are, which it then refuses.

    Raises:
        UserError: which does not repeat them.
    """
    for variable in CREDENTIALS.split(" and "):
        value = os.environ.get(variable, "")
        if not (value.isascii() and value.isprintable()):
            raise UserError(f"{variable}: allowed: printable characters of ASCII; MLflow's server takes no others")


def same_server(one: str, other: str) -> bool:
    """Whether two addresses are the same."""
    return one.rstrip("/") == other.rstrip("/")


def short_name(name: str) -> str:
    """A run's name as a server's database can hold it; SQLite holds any."""
    return name if len(name) <= _MAX_NAME else f"{name[: _MAX_NAME - 1]}…"


def quiet() -> None:
    """Silence what MLflow and its libraries say of their own doings."""
    for chatty in ("mlflow", "alembic"):
        logging.getLogger(chatty).setLevel(logging.WARNING)
    logging.getLogger("urllib3.connectionpool").setLevel(logging.ERROR)
    logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)  # prints the traceback of what it raises too


@contextmanager
def silence() -> Iterator[None]:
    """Silence even MLflow's warnings, and its progress bars: for what is known to work as it is done here."""
    logger = logging.getLogger("mlflow")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with variables({_BARS: "false"}):
            yield
    finally:
        logger.setLevel(level)


def connect(mlflow: Any, config: TrackingConfig, outputs: Path) -> str:
    """Point mlflow at the store, and give the id of the experiment, created where it is missing.

    Raises:
        UserError: when it cannot be opened; ServerAway where that may pass.
    """
    quiet()
    uri = store_uri(config, outputs)
    if is_server(uri):
        check_credentials()
    own_store = uri.startswith(_SQLITE)
    outputs.mkdir(parents=True, exist_ok=True)
    if own_store:
        check_database(uri, Path(uri.removeprefix(_SQLITE)), config.patience_s)
    with asking(mlflow, uri, f"experiment '{config.experiment}' cannot be opened"), few_retries():
        point_at(mlflow, uri)
        with FileLock(outputs / ".mlflow.lock"):
            if own_store:
                _create_store(mlflow, Path(uri.removeprefix(_SQLITE)))
            found = mlflow.get_experiment_by_name(config.experiment)
            if found is not None and found.lifecycle_stage == "active":
                return _with_view(mlflow, found)
            if found is not None:
                raise UserError(deleted(uri, config.experiment, found.experiment_id, "tracking.experiment"))
            location = (outputs / _ARTIFACTS).as_uri() if own_store else None
            return _create_experiment(mlflow, config.experiment, location)


def _with_view(mlflow: Any, experiment: Any) -> str:
    """The id of an experiment, which now has the view of its runs, as it is drawn today."""
    view = results()
    if experiment.tags.get(view.tag) != view.value:
        mlflow.MlflowClient().set_experiment_tag(experiment.experiment_id, view.tag, view.value)
    return str(experiment.experiment_id)


def point_at(mlflow: Any, uri: str, reads: bool = False) -> None:
    """Have mlflow speak to this store, and to no other that the environment names. It would name it there too, where
    `tracking=server` and `configured_server` look for what the user has chosen."""
    forget(uri, reads)
    with variables({SERVER_VARIABLE: uri}):
        mlflow.set_tracking_uri(uri)


def deleted(uri: str, experiment: str, experiment_id: str, key: str) -> str:
    """The line for an experiment that someone deleted, which MLflow keeps until it is restored or wiped out."""
    restore = shlex.join(["mlflow", "experiments", "restore", "--experiment-id", experiment_id])
    return (
        f"{key}={experiment}: this experiment was deleted in MLflow; MLFLOW_TRACKING_URI={shlex.quote(uri)} {restore} "
        f"restores it; allowed: {key}=NAME with another name"
    )


def _create_experiment(mlflow: Any, name: str, location: str | None) -> str:
    """Create the experiment, or find that another machine has done so meanwhile."""
    view = results()
    try:
        return str(mlflow.create_experiment(name, artifact_location=location, tags={**_KIND, view.tag: view.value}))
    except mlflow.exceptions.MlflowException as error:
        found = mlflow.get_experiment_by_name(name) if error.error_code == "RESOURCE_ALREADY_EXISTS" else None
        if found is None or found.lifecycle_stage != "active":
            raise
        return str(found.experiment_id)


def _create_store(mlflow: Any, database: Path) -> None:
    """Create a SQLite store, complete or absent: one that is killed between its migrations cannot be opened again."""
    if not database.exists():
        database.parent.mkdir(parents=True, exist_ok=True)
        with write_and_rename(database) as temporary:
            mlflow.MlflowClient(f"sqlite:///{temporary}").search_experiments(max_results=1)


@contextmanager
def asking(mlflow: Any, uri: str, what: str) -> Iterator[None]:
    """Let whatever a store refuses in this block end as one line that says `what` could not be done.

    Raises:
        UserError: ServerAway for a server that is away or busy, or a file that another process has locked.
    """
    try:
        yield
    except Exception as error:
        if not (isinstance(error, mlflow.exceptions.MlflowException) or is_databases(error)):
            raise
        status = http_status(error)
        if is_server(uri) and status in (401, 403):
            raise UserError(
                f"tracking.uri={uri}: {what}: the server refuses the user and password (HTTP {status}): set "
                f"{CREDENTIALS} in the environment to those of a user who may write there"
            ) from error
        if is_server(uri) and passes(status):
            raise ServerAway(f"tracking.uri={uri}: {what}: the server is away: {reason(error)}") from error
        if is_locked(error):
            raise ServerAway(f"tracking.uri={uri}: {what}: another process has it locked") from error
        why = reason(error) if is_server(uri) else fault(error) or next(iter(str(error).splitlines()), "")
        raise UserError(f"tracking.uri={uri}: {what}: {why}") from error
