"""The run that has a result already: one that is wholly cached points to it, instead of being logged again."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.host.redaction import mask_text
from pipeline.settings.config import TrackingConfig
from pipeline.tracking.pages import run_page
from pipeline.tracking.parents import JOB_TAG
from pipeline.tracking.patience import few_retries, waiting
from pipeline.tracking.starting import RunRecord, first_patience_s
from pipeline.tracking.store import asking, connect, short_name, store_uri

# Settings that say where a result goes and whether it is made again, not what it is.
_ASIDE = ("outputs", "force", "tracking", "register")
_MANY = 100


@dataclass(frozen=True)
class Earlier:
    """A run that was there before: its id, name, page in a browser (may be empty) and experiment's id."""

    run_id: str
    name: str
    page: str
    experiment: str


def find_earlier(config: TrackingConfig, outputs: Path, record: RunRecord) -> Earlier | None:
    """The newest finished run with the artifacts, stages and settings of `record`.

    A job's must be under the same sweep, and one that was asked for by `tracking.run_name` must have that name.

    Raises:
        UserError: when the tracking store cannot be asked.
    """
    if not config.enabled:
        return None
    import mlflow

    uri, artifacts = store_uri(config, outputs), _artifacts(record.tags)
    wanted = {**artifacts}
    if record.parent_run_id is not None:
        wanted |= {"mlflow.parentRunId": record.parent_run_id, JOB_TAG: record.tags[JOB_TAG]}
    tags = [f"tags.`{tag}` = '{text}'" for tag, text in wanted.items()]
    where = " and ".join(["attributes.status = 'FINISHED'", *tags])

    def ask() -> tuple[str, list[Any]]:
        experiment = connect(mlflow, config, outputs)
        with asking(mlflow, uri, "earlier runs cannot be read"), few_retries():
            return experiment, list(mlflow.MlflowClient().search_runs([experiment], where, max_results=_MANY))

    experiment, found = waiting(uri, first_patience_s(config, record), ask)
    settings = _settings(record.logged_parameters())
    name = mask_text(config.run_name) if config.run_name is not None else None
    for run in found:
        same = _artifacts(run.data.tags) == artifacts and _settings(run.data.params) == settings
        if same and (name is None or run.info.run_name in (name, short_name(name))):
            return Earlier(run.info.run_id, run.info.run_name, run_page(uri, experiment, run.info.run_id), experiment)
    return None


def _artifacts(tags: Any) -> dict[str, str]:
    return {name: text for name, text in tags.items() if name.startswith("artifact.")}


def _settings(parameters: Any) -> dict[str, str]:
    return {name: text for name, text in parameters.items() if name.split(".")[0] not in _ASIDE}
