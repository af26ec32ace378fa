"""Finding the folder of a model that is in a store: a registered one's, or a run's."""

from __future__ import annotations

import atexit
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pipeline.host.errors import UserError, first_line, suggestion
from pipeline.settings.config import TrackingConfig
from pipeline.settings.store_address import is_server
from pipeline.tracking.store import open_to_read, store_uri, tell_unused_store

_URI = re.compile(r"models:/(?P<name>[^/@]+)(?P<which>@[^/@]+|/\d+)")


def find_registered(uri: str, config: TrackingConfig, outputs: Path, key: str = "--model") -> Path:
    """The folder of the model `models:/NAME@ALIAS` or `models:/NAME/VERSION`; a server's is downloaded.

    Args:
        key: what names the model, in an error's line.

    Raises:
        UserError: when there is no such store, model, alias or version, or its files are gone.
    """
    told, asked = f"{key} {uri}", _asked(uri, key)
    tell_unused_store(config, outputs, "--tracking-uri=$MLFLOW_TRACKING_URI")
    client = open_to_read(config, outputs)
    with _had(told, client):
        _check_known(client, told, asked["name"], asked["which"], store_uri(config, outputs))
        return _folder(uri, told, client)


def _asked(uri: str, key: str) -> re.Match[str]:
    asked = _URI.fullmatch(uri)
    if asked is None:
        raise UserError(f"{key} {uri}: allowed: models:/NAME@ALIAS or models:/NAME/VERSION")
    return asked


def source_run(uri: str, config: TrackingConfig, outputs: Path, key: str = "--model") -> str | None:
    """The id of the run that a registered model is of; None where it was registered by other means.

    Raises:
        UserError: when there is no such store, model, alias or version.
    """
    asked = _asked(uri, key)
    client, name, which = open_to_read(config, outputs), asked["name"], asked["which"]
    with _had(uri, client):
        ask = client.get_model_version_by_alias if which.startswith("@") else client.get_model_version
        return ask(name, which[1:]).run_id or None


def find_logged(run_id: str, config: TrackingConfig, outputs: Path) -> Path | None:
    """The folder of the exported int8 model that a run has logged last; None where it has logged none.

    Raises:
        UserError: when its files are gone.
    """
    client = open_to_read(config, outputs)
    with _had(f"run {run_id}", client):
        logged = client.get_run(run_id).outputs
        models = [client.get_logged_model(output.model_id) for output in (logged.model_outputs if logged else [])]
        uris = [str(model.model_uri) for model in models if str(model.status) == "READY"]
        return _folder(uris[-1], f"the model of run {run_id}", client) if uris else None


@contextmanager
def _had(told: str, client: Any) -> Iterator[None]:
    """Say in one line what MLflow raises."""
    from mlflow.exceptions import MlflowException

    try:
        yield
    except (MlflowException, OSError) as error:
        raise UserError(f"{told}: cannot be had from {client.tracking_uri}: {first_line(error)}") from error


def _folder(uri: str, told: str, client: Any) -> Path:
    import mlflow

    place = _temporary_folder() if is_server(client.tracking_uri) else None
    folder = Path(mlflow.artifacts.download_artifacts(artifact_uri=uri, dst_path=place))
    if not folder.is_dir():
        raise UserError(f"{told}: its folder {folder} is not there any more")
    return folder


def _temporary_folder() -> str:
    """One that is there until this process ends: MLflow would leave its own behind."""
    folder = tempfile.mkdtemp(prefix="model-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


def _check_known(client: Any, told: str, name: str, which: str, store: str) -> None:
    """See that the registry has the model and the version, to name the nearest where it has not."""
    found = client.search_registered_models(f"name = '{name}'")  # without a filter, the first hundred come alone
    if not found:
        names = sorted(model.name for model in client.search_registered_models())
        known = suggestion(name, names) if names else "allowed: none is registered yet"
        raise UserError(f"{told}: no model '{name}' is registered in {store}; {known}")
    versions = [f"/{version.version}" for version in client.search_model_versions(f"name = '{name}'")]
    allowed = sorted([*(f"@{alias}" for alias in found[0].aliases), *versions])
    if which not in allowed:
        known = suggestion(which, allowed) if allowed else "its versions were deleted; register.name=… makes one"
        raise UserError(f"{told}: {name} has no {which}; {known}")
