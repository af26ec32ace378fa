"""Which MLflow store: opening it, creating it whole, and noticing in seconds that a server is not there."""

from __future__ import annotations

import logging
import os
import shlex
from contextlib import nullcontext
from pathlib import Path
from typing import Any, NamedTuple

from filelock import FileLock

from pipeline.host import terminal
from pipeline.host.errors import UserError
from pipeline.host.files import resolved, write_and_rename
from pipeline.host.redaction import mask_text, refuse_credentials
from pipeline.settings.config import TrackingConfig
from pipeline.settings.store_address import check_sqlite, is_server
from pipeline.tracking.database import SQLITE, check_database
from pipeline.tracking.failures import CREDENTIALS, asking
from pipeline.tracking.inherited import forget
from pipeline.tracking.views import results

# As conf/tracking/server.yaml has them.
SERVER_VARIABLE, _DEFAULT_SERVER = "MLFLOW_TRACKING_URI", "http://127.0.0.1:5000"
_ARTIFACTS = "mlartifacts"
# A request that fails, fails at once: whoever asks, waits or keeps an outbox himself. A large file may take its time.
_QUIET = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "30",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
}
# Lets the MLflow UI open the experiment as model training, with its charts, instead of as GenAI.
_KIND = {"mlflow.experimentKind": "custom_model_development"}
_MAX_NAME = 250


class Opened(NamedTuple):
    """A store that was opened for writing: its address, MLflow's client of it, and the experiment's id."""

    uri: str
    client: Any
    experiment: str


def store_uri(config: TrackingConfig, outputs: Path) -> str:
    """The store that is asked for, a SQLite file resolved against the working directory, or the one under `outputs`.

    Raises:
        UserError: for a user and password in it, or a path that such an address cannot hold.
    """
    if config.uri is None:
        check_sqlite("outputs", str(outputs))
    uri = config.uri or f"{SQLITE}{outputs / 'mlflow.db'}"
    refuse_credentials("tracking.uri", uri)
    return _resolved(uri)


def _resolved(uri: str) -> str:
    return f"{SQLITE}{resolved(uri.removeprefix(SQLITE))}" if uri.startswith(SQLITE) else uri


def tell_unused_store(config: TrackingConfig, outputs: Path, setting: str = "tracking=server") -> None:
    """Say that the environment names another store than is used, and the setting that would take it."""
    named, used = os.environ.get(SERVER_VARIABLE), store_uri(config, outputs)
    if named and not same_server(_resolved(named), used):
        terminal.warn(mask_text(f"{SERVER_VARIABLE}={named} is not used, but {used}; {setting} takes it"))


def configured_server() -> str:
    """The server of `tracking=server`, to which the user and password in the environment belong."""
    return os.environ.get(SERVER_VARIABLE) or _DEFAULT_SERVER


def same_server(one: str, other: str) -> bool:
    """Whether two addresses are the same."""
    return one.rstrip("/") == other.rstrip("/")


def short_name(name: str) -> str:
    """A run's name as a server's database can hold it."""
    return name if len(name) <= _MAX_NAME else f"{name[: _MAX_NAME - 1]}…"


def client_of(uri: str, reads: bool = False) -> Any:
    """A client of the store at `uri`, to which mlflow's own functions speak from now on too.

    What it would say of its own doings, and what else the environment names, is left out.
    """
    import mlflow

    for chatty, level in {"mlflow": "ERROR", "alembic": "WARNING", "urllib3.connectionpool": "ERROR"}.items():
        logging.getLogger(chatty).setLevel(level)
    logging.getLogger("mlflow.store.db.utils").setLevel("CRITICAL")  # prints the traceback of what it raises too
    for variable, value in _QUIET.items():
        os.environ.setdefault(variable, value)
    forget(uri, reads)
    # It would name it in the environment too, where `configured_server` looks for what the user has chosen.
    chosen = os.environ.get(SERVER_VARIABLE)
    mlflow.set_tracking_uri(uri)
    os.environ.pop(SERVER_VARIABLE, None)
    if chosen is not None:
        os.environ[SERVER_VARIABLE] = chosen
    return mlflow.MlflowClient(uri)


def open_to_read(config: TrackingConfig, outputs: Path) -> Any:
    """A client of a store that is there: MLflow would create the database that it does not find.

    Raises:
        UserError: when it cannot be opened; ServerAway where that may pass.
    """
    uri, database = store_uri(config, outputs), _database(config, outputs)
    if database is not None and not database.exists():
        raise UserError(f"tracking.uri={uri}: there is no such database; python -m pipeline makes the first run")
    return _open(config, uri, database, reads=True)


def connect(config: TrackingConfig, outputs: Path) -> Opened:
    """Open the store, and its experiment; both are created where they are missing.

    Raises:
        UserError: when it cannot be opened; ServerAway where that may pass.
    """
    uri, database = store_uri(config, outputs), _database(config, outputs)
    outputs.mkdir(parents=True, exist_ok=True)
    client = _open(config, uri, database)
    with asking(uri, f"experiment '{config.experiment}' cannot be opened"), _schema_lock(database):
        location = (outputs / _ARTIFACTS).as_uri() if database is not None else None
        return Opened(uri, client, _experiment(client, uri, config.experiment, location))


def _database(config: TrackingConfig, outputs: Path) -> Path | None:
    uri = store_uri(config, outputs)
    return Path(uri.removeprefix(SQLITE)) if uri.startswith(SQLITE) else None


def _schema_lock(database: Path | None) -> Any:
    """Held while a file's tables or experiment are made, or read: processes that do so at once would destroy it."""
    return nullcontext() if database is None else FileLock(database.parent / ".mlflow.lock")


def _open(config: TrackingConfig, uri: str, database: Path | None, reads: bool = False) -> Any:
    if database is not None:
        check_database(uri, database, config.patience_s)
        database.parent.mkdir(parents=True, exist_ok=True)
    elif is_server(uri):
        _check_credentials()
    with asking(uri, "cannot be opened"), _schema_lock(database):
        if database is not None and not database.exists():
            # Complete or absent: one that is killed between its migrations cannot be opened again.
            with write_and_rename(database) as temporary:
                client_of(f"{SQLITE}{temporary}", reads).search_experiments(max_results=1)
        return client_of(uri, reads)


def _check_credentials() -> None:
    """See that MLflow can send the user and password of the environment.

    Its server reads them as UTF-8 where runs are, and as ASCII where files are, which it then refuses.

    Raises:
        UserError: which does not repeat them.
    """
    for variable in CREDENTIALS.split(" and "):
        value = os.environ.get(variable, "")
        if not (value.isascii() and value.isprintable()):
            raise UserError(f"{variable}: allowed: printable characters of ASCII; MLflow's server takes no others")


def _experiment(client: Any, uri: str, name: str, location: str | None) -> str:
    """The id of an experiment, made where there is none, which has the view of its runs as it is drawn today."""
    from mlflow.exceptions import MlflowException

    found, view = client.get_experiment_by_name(name), results()
    if found is None:
        try:
            return str(client.create_experiment(name, location, {**_KIND, view.tag: view.value}))
        except MlflowException as error:
            found = client.get_experiment_by_name(name)
            if error.error_code != "RESOURCE_ALREADY_EXISTS" or found is None:  # else another machine has made it
                raise
    if found.lifecycle_stage != "active":
        raise UserError(deleted(uri, name, found.experiment_id, "tracking.experiment"))
    if found.tags.get(view.tag) != view.value:
        client.set_experiment_tag(found.experiment_id, view.tag, view.value)
    return str(found.experiment_id)


def deleted(uri: str, experiment: str, experiment_id: str, key: str) -> str:
    """The line for an experiment that someone deleted, which MLflow keeps until it is restored or wiped out."""
    restore = shlex.join(["mlflow", "experiments", "restore", "--experiment-id", experiment_id])
    return (
        f"{key}={experiment}: this experiment was deleted in MLflow; MLFLOW_TRACKING_URI={shlex.quote(uri)} {restore} "
        f"restores it; allowed: {key}=NAME with another name"
    )
