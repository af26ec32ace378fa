"""Finding a registered model's folder."""

from __future__ import annotations

import atexit
import re
import shutil
import tempfile
from pathlib import Path
from typing import Any

from pipeline.host.errors import UserError, first_line, suggestion
from pipeline.settings.config import TrackingConfig
from pipeline.settings.store_address import is_server
from pipeline.tracking.store import open_to_read, store_uri, tell_unused_store

_URI = re.compile(r"models:/(?P<name>[^/@]+)(?P<which>@[^/@]+|/\d+)")


def find_registered(uri: str, config: TrackingConfig, outputs: Path) -> Path:
    """The folder of the model `models:/NAME@ALIAS` or `models:/NAME/VERSION`; a server's is downloaded.

    Raises:
        UserError: when there is no such store, model, alias or version, or its files are gone.
    """
    import mlflow

    asked = _URI.fullmatch(uri)
    if asked is None:
        raise UserError(f"--model {uri}: allowed: models:/NAME@ALIAS or models:/NAME/VERSION")
    tell_unused_store(config, outputs, "--tracking-uri=$MLFLOW_TRACKING_URI")
    client = open_to_read(config, outputs)
    try:
        _check_known(client, uri, asked["name"], asked["which"], store_uri(config, outputs))
        place = _temporary_folder() if is_server(client.tracking_uri) else None
        folder = Path(mlflow.artifacts.download_artifacts(artifact_uri=uri, dst_path=place))
    except (mlflow.exceptions.MlflowException, OSError) as error:
        raise UserError(f"--model {uri}: cannot be had from {client.tracking_uri}: {first_line(error)}") from error
    if not folder.is_dir():
        raise UserError(f"--model {uri}: its folder {folder} is not there any more")
    return folder


def _temporary_folder() -> str:
    """One that is there until this process ends: MLflow would leave its own behind."""
    folder = tempfile.mkdtemp(prefix="model-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


def _check_known(client: Any, uri: str, name: str, which: str, store: str) -> None:
    """See that the registry has the model and the version, to name the nearest where it has not."""
    found = client.search_registered_models(f"name = '{name}'")  # without a filter, the first hundred come alone
    if not found:
        names = sorted(model.name for model in client.search_registered_models())
        known = suggestion(name, names) if names else "allowed: none is registered yet"
        raise UserError(f"--model {uri}: no model '{name}' is registered in {store}; {known}")
    versions = [f"/{version.version}" for version in client.search_model_versions(f"name = '{name}'")]
    allowed = sorted([*(f"@{alias}" for alias in found[0].aliases), *versions])
    if which not in allowed:
        known = suggestion(which, allowed) if allowed else "its versions were deleted; register.name=… makes one"
        raise UserError(f"--model {uri}: {name} has no {which}; {known}")
