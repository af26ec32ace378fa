"""Links into MLflow's UI: a run's page, and the experiment's runs as one of our views shows them."""

from __future__ import annotations

import shlex
from pathlib import Path

from pipeline.host.files import PROJECT_ROOT, resolved
from pipeline.settings.config import TrackingConfig
from pipeline.settings.store_address import is_server
from pipeline.tracking.database import SQLITE
from pipeline.tracking.store import store_uri

# Where `make ui` and `mlflow ui` serve the store that is a file.
_LOCAL = "http://127.0.0.1:5000"
# Otherwise the page opens as that of GenAI.
_AS_TRAINING = "workflowType=machine_learning"


def run_page(uri: str, experiment: str, run_id: str) -> str:
    """The page of a run; empty for a store that no server of MLflow's is known to show."""
    site = _site(uri)
    return f"{site}/#/experiments/{experiment}/runs/{run_id}?{_AS_TRAINING}" if site else ""


def way_to_view(config: TrackingConfig, outputs: Path, experiment: str, view: str) -> str:
    """What to type and open to see the experiment's runs as the view with this key shows them; may be empty.

    Args:
        outputs: the folder of the default store.
        experiment: its id.
        view: the key of one of `views`.
    """
    uri = store_uri(config, outputs)
    site = _site(uri)
    if not site:
        return ""
    page = f"open {site}/#/experiments/{experiment}/runs?{_AS_TRAINING}&viewStateShareKey={view}"
    if is_server(uri):
        return page
    makes = uri == store_uri(TrackingConfig(), resolved("outputs")) and Path.cwd() == PROJECT_ROOT
    serve = "make ui" if makes else shlex.join(["mlflow", "ui", "--backend-store-uri", uri])
    return f"{serve}    # then {page}"


def _site(uri: str) -> str:
    if is_server(uri):
        return uri.rstrip("/")
    return _LOCAL if uri.startswith(SQLITE) else ""
