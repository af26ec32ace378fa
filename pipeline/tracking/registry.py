"""Finding a registered model's folder, in milliseconds where the store is a SQLite file.

Importing mlflow takes seconds. The two tables that say which folder `models:/NAME@ALIAS` is are read directly; a
store that has them otherwise, or is a server, is asked through mlflow.
"""

from __future__ import annotations

import atexit
import re
import shutil
import sqlite3
import tempfile
import urllib.parse
import urllib.request
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

from pipeline.host.errors import UserError, suggestion
from pipeline.settings.config import TrackingConfig
from pipeline.tracking.database import check_database
from pipeline.tracking.patience import few_retries
from pipeline.tracking.store import point_at, silence, store_uri, tell_unused_store

_URI = re.compile(r"models:/(?P<name>[^/@]+)(@(?P<alias>[^/@]+)|/(?P<version>\d+))")
_SQLITE = "sqlite:///"
# MLflow keeps the row of a version that was deleted.
_VERSIONS = "(select * from model_versions where current_stage <> 'Deleted_Internal')"


def find_registered(uri: str, config: TrackingConfig, outputs: Path) -> Path:
    """The folder of the model `models:/NAME@ALIAS` or `models:/NAME/VERSION`.

    Raises:
        UserError: when there is no such store, model, alias or version, or its files are gone.
    """
    asked = _URI.fullmatch(uri)
    if asked is None:
        raise UserError(f"--model {uri}: allowed: models:/NAME@ALIAS or models:/NAME/VERSION")
    store = store_uri(config, outputs)
    tell_unused_store(config, outputs, "--tracking-uri=$MLFLOW_TRACKING_URI")
    location = None
    if store.startswith(_SQLITE):
        database = Path(store.removeprefix(_SQLITE))
        if not database.exists():
            raise UserError(f"--model {uri}: there is no store {database}; a run with register.name makes it")
        check_database(store, database, config.patience_s)
        location = _read_location(uri, asked, database)
    if location is None or not location.startswith("file:"):
        return _download(uri, store)
    folder = Path(urllib.request.url2pathname(urllib.parse.urlsplit(location).path))
    if not folder.is_dir():
        raise UserError(f"--model {uri}: its folder {folder} is not there any more")
    return folder


def _read_location(uri: str, asked: re.Match[str], database: Path) -> str | None:
    """Where a version's files are, or None when this store's tables are not as they are known here."""
    name, alias, version = asked["name"], asked["alias"], asked["version"]
    try:
        with closing(sqlite3.connect(f"{database.as_uri()}?mode=ro", uri=True)) as store:
            names = _column(store, "select name from registered_models")
            versions = _column(store, f"select version from {_VERSIONS} where name = ?", name)
            aliases = _column(store, "select alias from registered_model_aliases where name = ?", name)
            if name in names and alias in aliases:
                query = "select version from registered_model_aliases where name = ? and alias = ?"
                (version,) = _column(store, query, name, alias)
            query = f"select storage_location from {_VERSIONS} where name = ? and version = ?"
            found = _column(store, query, name, version)
    except sqlite3.DatabaseError:
        return None
    if name not in names:
        known = suggestion(name, sorted(names)) if names else "allowed: none is registered yet"
        raise UserError(f"--model {uri}: no model '{name}' is registered in {database}; {known}")
    if not found:
        allowed = [*(f"@{known}" for known in sorted(aliases)), *(f"/{known}" for known in sorted(versions))]
        given = f"@{alias}" if alias else f"/{version}"
        known = suggestion(given, allowed) if allowed else "its versions were deleted; register.name=… makes one"
        raise UserError(f"--model {uri}: {name} has no {given}; {known}")
    return found[0]


def _column(store: sqlite3.Connection, query: str, *values: str) -> Sequence[str]:
    return [None if row[0] is None else str(row[0]) for row in store.execute(query, values)]  # type: ignore[misc]


def _download(uri: str, store: str) -> Path:
    """The model's folder by way of mlflow: seconds for its import, and the download where the store is a server."""
    import mlflow

    folder = tempfile.mkdtemp(prefix="model-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    try:
        with few_retries(), silence():
            point_at(mlflow, store, reads=True)
            return Path(mlflow.artifacts.download_artifacts(artifact_uri=uri, dst_path=folder))
    except mlflow.exceptions.MlflowException as error:
        raise UserError(f"--model {uri}: cannot be had from {store}: {str(error).splitlines()[0]}") from error
