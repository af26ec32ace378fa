"""Finding a registered model's folder."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from pipeline.host.errors import UserError, first_line, suggestion
from pipeline.settings.config import TrackingConfig
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
        folder = Path(mlflow.artifacts.download_artifacts(artifact_uri=uri))
    except (mlflow.exceptions.MlflowException, OSError) as error:
        raise UserError(f"--model {uri}: cannot be had from {client.tracking_uri}: {first_line(error)}") from error
    if not folder.is_dir():
        raise UserError(f"--model {uri}: its folder {folder} is not there any more")
    return folder


def _check_known(client: Any, uri: str, name: str, which: str, store: str) -> None:
    """See that the registry has the model and the version, to name the nearest where it has not."""
    models = {model.name: model for model in client.search_registered_models()}
    if name not in models:
        known = suggestion(name, sorted(models)) if models else "allowed: none is registered yet"
        raise UserError(f"--model {uri}: no model '{name}' is registered in {store}; {known}")
    versions = [f"/{version.version}" for version in client.search_model_versions(f"name = '{name}'")]
    allowed = sorted([*(f"@{alias}" for alias in models[name].aliases), *versions])
    if which not in allowed:
        known = suggestion(which, allowed) if allowed else "its versions were deleted; register.name=… makes one"
        raise UserError(f"--model {uri}: {name} has no {which}; {known}")
