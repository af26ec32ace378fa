"""Finding a registered model's folder, in milliseconds where the store is a SQLite file.

Importing mlflow takes seconds, and docs/serving.md promises the first prediction in a fraction of one. So the tables
that say which folder `models:/NAME@ALIAS` is are read directly; a store that has them otherwise, or is a server, is
asked through mlflow.
"""

from __future__ import annotations

import atexit
import re
import shutil
import sqlite3
import tempfile
import urllib.parse
import urllib.request
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path

from pipeline.host.errors import UserError, suggestion
from pipeline.settings.config import TrackingConfig
from pipeline.tracking.database import SQLITE, check_database
from pipeline.tracking.store import client_of, store_uri, tell_unused_store

_URI = re.compile(r"models:/(?P<name>[^/@]+)(?P<which>@[^/@]+|/\d+)")
# MLflow keeps the row of a version that was deleted.
_QUERY = """
    select m.name, v.version, a.alias, v.storage_location from registered_models m
    left join model_versions v on v.name = m.name and v.current_stage <> 'Deleted_Internal'
    left join registered_model_aliases a on a.name = v.name and a.version = v.version
"""


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
    if not store.startswith(SQLITE):
        return _download(uri, store)
    database = Path(store.removeprefix(SQLITE))
    if not database.exists():
        raise UserError(f"--model {uri}: there is no store {database}; a run with register.name makes it")
    check_database(store, database, config.patience_s)
    try:
        models = _read_locations(database)
    except sqlite3.DatabaseError:  # another release has other tables
        return _download(uri, store)
    name, which = asked["name"], asked["which"]
    if name not in models:
        known = suggestion(name, sorted(models)) if models else "allowed: none is registered yet"
        raise UserError(f"--model {uri}: no model '{name}' is registered in {database}; {known}")
    if which not in models[name]:
        allowed = sorted(models[name])
        known = suggestion(which, allowed) if allowed else "its versions were deleted; register.name=… makes one"
        raise UserError(f"--model {uri}: {name} has no {which}; {known}")
    location = urllib.parse.urlsplit(models[name][which])
    if location.scheme != "file":
        return _download(uri, store)
    folder = Path(urllib.request.url2pathname(location.path))
    if not folder.is_dir():
        raise UserError(f"--model {uri}: its folder {folder} is not there any more")
    return folder


def _read_locations(database: Path) -> Mapping[str, Mapping[str, str]]:
    """By model, where the files of each `/VERSION` and `@ALIAS` are."""
    models: dict[str, dict[str, str]] = {}
    with closing(sqlite3.connect(f"{database.as_uri()}?mode=ro", uri=True)) as store:
        for name, version, alias, location in store.execute(_QUERY):
            known = models.setdefault(name, {})
            if version is not None:
                known[f"/{version}"] = location or ""
            if alias is not None:
                known[f"@{alias}"] = location or ""
    return models


def _download(uri: str, store: str) -> Path:
    """The model's folder by way of mlflow: seconds for its import, and the download where the store is a server."""
    import mlflow

    folder = tempfile.mkdtemp(prefix="model-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    client_of(store, reads=True)
    try:
        return Path(mlflow.artifacts.download_artifacts(artifact_uri=uri, dst_path=folder))
    except mlflow.exceptions.MlflowException as error:
        raise UserError(f"--model {uri}: cannot be had from {store}: {str(error).splitlines()[0]}") from error
