"""Which MLflow store: opening it, creating it whole, and noticing in seconds that a server is not there."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from filelock import FileLock

from pipeline import terminal
from pipeline.config import TrackingConfig
from pipeline.errors import UserError
from pipeline.files import in_project, write_and_rename
from pipeline.redaction import refuse_credentials
from pipeline.store_address import check_sqlite, is_server
from pipeline.tracking.failures import http_status, passes, reason
from pipeline.tracking.views import results

CREDENTIALS = "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD"
# As conf/tracking/server.yaml has them.
SERVER_VARIABLE, _DEFAULT_SERVER = "MLFLOW_TRACKING_URI", "http://127.0.0.1:5000"
_SQLITE = "sqlite:///"
_DATABASE = "mlflow.db"
_ARTIFACTS = "mlartifacts"
_BARS = "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR"
_FEW = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2", "MLFLOW_HTTP_REQUEST_TIMEOUT": "10"}
# Of a run that goes on, whose outbox tries again by itself. A large file may take its time.
_ONCE = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "30",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
}
# Lets the MLflow UI open the experiment as model training, with its charts, instead of as GenAI.
_KIND = {"mlflow.experimentKind": "custom_model_development"}
_ASK_EVERY_S = 2.0

_MAX_NAME = 250

Answer = TypeVar("Answer")


class ServerAway(UserError):
    """A tracking server does not answer, or says that it cannot now."""


def store_uri(config: TrackingConfig, outputs: Path) -> str:
    """The store that is asked for, a SQLite file resolved against the project root, or the one under `outputs`.

    Raises:
        UserError: for a user and password in it, or a path that such an address cannot hold.
    """
    if config.uri is None:
        check_sqlite("outputs", str(outputs))
    uri = config.uri or f"{_SQLITE}{outputs / _DATABASE}"
    refuse_credentials("tracking.uri", uri)
    return f"{_SQLITE}{in_project(uri.removeprefix(_SQLITE))}" if uri.startswith(_SQLITE) else uri


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
        with _variables({_BARS: "false"}):
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
    with asking(mlflow, uri, f"experiment '{config.experiment}' cannot be opened"), few_retries():
        point_at(mlflow, uri)
        with FileLock(outputs / ".mlflow.lock"):
            if own_store:
                _create_store(mlflow, Path(uri.removeprefix(_SQLITE)))
            found = mlflow.get_experiment_by_name(config.experiment)
            if found is not None and found.lifecycle_stage == "active":
                return _with_view(mlflow, found)
            location = (outputs / _ARTIFACTS).as_uri() if own_store else None
            return _create_experiment(mlflow, config.experiment, location)


def _with_view(mlflow: Any, experiment: Any) -> str:
    """The id of an experiment, which now has the view of its runs, as it is drawn today."""
    view = results()
    if experiment.tags.get(view.tag) != view.value:
        mlflow.MlflowClient().set_experiment_tag(experiment.experiment_id, view.tag, view.value)
    return str(experiment.experiment_id)


def point_at(mlflow: Any, uri: str) -> None:
    """Have mlflow speak to this store. It would name it in the environment too, where `tracking=server` and
    `configured_server` look for what the user has chosen."""
    with _variables({SERVER_VARIABLE: uri}):
        mlflow.set_tracking_uri(uri)


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
        UserError: ServerAway for a server that is away or busy.
    """
    try:
        yield
    except mlflow.exceptions.MlflowException as error:
        status = http_status(error)
        if is_server(uri) and status in (401, 403):
            raise UserError(
                f"tracking.uri={uri}: {what}: the server refuses the user and password (HTTP {status}): set "
                f"{CREDENTIALS} in the environment to those of a user who may write there"
            ) from error
        if is_server(uri) and passes(status):
            raise ServerAway(f"tracking.uri={uri}: {what}: the server is away: {reason(error)}") from error
        why = reason(error) if is_server(uri) else str(error).splitlines()[0]
        raise UserError(f"tracking.uri={uri}: {what}: {why}") from error


def waiting(uri: str, patience_s: float, ask: Callable[[], Answer]) -> Answer:
    """What `ask` gives, asked again while the server is away, for at most `patience_s`.

    Raises:
        ServerAway: when it is away for longer.
        UserError: what `ask` raises.
    """
    deadline, told = time.monotonic() + patience_s, False
    while True:
        try:
            return ask()
        except ServerAway:
            left = deadline - time.monotonic()
            if left <= 0:
                raise
            if not told:
                terminal.warn(f"the tracking server {uri} is away: waits for it, up to {left:.0f} s")
                told = True
            time.sleep(min(_ASK_EVERY_S, left))


@contextmanager
def few_retries() -> Iterator[None]:
    """Let a server that is not there be noticed in seconds, before any work, instead of in minutes."""
    with _variables({variable: os.environ.get(variable, value) for variable, value in _FEW.items()}):
        yield


@contextmanager
def one_try() -> Iterator[None]:
    """Ask once: for what must not be done twice, where an answer that comes too late would be asked for again."""
    with _variables(_ONCE):
        yield


@contextmanager
def _variables(values: Mapping[str, str]) -> Iterator[None]:
    before = {variable: os.environ.get(variable) for variable in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for variable, value in before.items():
            if value is None:
                os.environ.pop(variable, None)
            else:
                os.environ[variable] = value


def no_retries() -> None:
    """For the rest of the process, let a request that fails fail at once: whoever sends tries again by itself."""
    for variable, value in _ONCE.items():
        os.environ.setdefault(variable, value)
