"""Reads runs back from the tracking store.

Runs are listed once and chosen here, because which of them are parents is known only from the others.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock

from pipeline.host.errors import UserError, nearest, suggestion
from pipeline.reports.tracked_run import TrackedRun
from pipeline.settings.config import TrackingConfig
from pipeline.tracking.database import check_database
from pipeline.tracking.inherited import forget
from pipeline.tracking.parents import JOB_TAG, SWEEP_TAG
from pipeline.tracking.patience import few_retries
from pipeline.tracking.store import asking, deleted, quiet, short_name, store_uri

_PARENT = "mlflow.parentRunId"
_FINISHED = "FINISHED"
_PAGE = 1000
_OPERATOR = re.compile(r"[=<>]|\b(like|in|is)\b", re.IGNORECASE)


def read_runs(
    config: TrackingConfig, outputs: Path, selection: str | None = None, experiment: str | None = None
) -> list[TrackedRun]:
    """The runs that `selection` names, newest first, whatever their status; parents of others are left out.

    Args:
        config: which store; its experiment is not looked at.
        outputs: the folder of the default store.
        selection: the id or the name of a sweep or a parent (its children are meant) or of a run, or an MLflow
            filter; None: every run of the experiment.
        experiment: its name; None: the one with the newest run, and for an id or a name any.

    Raises:
        UserError: when the store, the experiment or the selection is not there, or the filter is wrong.
    """
    with _client(config, outputs) as client:
        names = {found.experiment_id: found.name for found in client.search_experiments()}
        gone = client.get_experiment_by_name(experiment) if experiment is not None else None
        if gone is not None and gone.lifecycle_stage != "active":
            raise UserError(deleted(client.tracking_uri, gone.name, gone.experiment_id, "--experiment"))
        if experiment is not None and experiment not in names.values():
            raise UserError(f"--experiment {experiment}: {suggestion(experiment, sorted(names.values()))}")
        among = [key for key, name in names.items() if experiment in (None, name)]
        runs = _search(client, among)
        if not runs:
            raise UserError(f"there is no run in {store_uri(config, outputs)}; python -m pipeline makes the first")
        parents = {run.data.tags[_PARENT] for run in runs if _PARENT in run.data.tags}
        parents |= {run.info.run_id for run in runs if SWEEP_TAG in run.data.tags}
        chosen = _named(runs, parents, selection) if selection else []
        if not chosen:
            newest = [runs[0].info.experiment_id]
            chosen = _filtered(client, newest, selection, runs) if selection else _search(client, newest)
    return [_tracked(run) for run in chosen if run.info.run_id not in parents]


def users_of_artifacts(config: TrackingConfig, outputs: Path) -> dict[str, list[str]]:
    """By artifact, the names of the runs that name it, in every experiment; of runs that are not deleted.

    Raises:
        UserError: when the store is not there, or cannot be asked.
    """
    users: dict[str, list[str]] = {}
    with _client(config, outputs) as client:
        for run in _search(client, [found.experiment_id for found in client.search_experiments()]):
            for tag, artifact in run.data.tags.items():
                if tag.startswith("artifact."):
                    users.setdefault(artifact, []).append(run.info.run_name)
    return users


@contextmanager
def _client(config: TrackingConfig, outputs: Path) -> Iterator[Any]:
    """A client of a store that exists, whose refusals end as one line.

    MLflow would create the database that it does not find.
    """
    uri = store_uri(config, outputs)
    database = Path(uri.removeprefix("sqlite:///")) if uri.startswith("sqlite:///") else None
    if database is not None and not database.exists():
        raise UserError(f"tracking.uri={uri}: there is no such database; python -m pipeline makes the first run")
    if database is not None:
        check_database(uri, database, config.patience_s)
    import mlflow

    quiet()
    forget(uri, reads=True)
    with asking(mlflow, uri, "cannot be read"), few_retries():
        if database is None:
            client = mlflow.MlflowClient(uri)
        else:
            # Opening reads the schema, which another process may be creating at this moment.
            with FileLock(database.parent / ".mlflow.lock"):
                client = mlflow.MlflowClient(uri)
        yield client


def _search(client: Any, experiments: list[str], filter_string: str = "") -> list[Any]:
    """Every run of the experiments that is not deleted, newest first."""
    found: list[Any] = []
    token = None
    while True:
        page = client.search_runs(
            experiments, filter_string, max_results=_PAGE, order_by=["attributes.start_time DESC"], page_token=token
        )
        found.extend(page)
        token = page.token
        if not token:
            return found


def _named(runs: list[Any], parents: set[str], selection: str) -> list[Any]:
    """The children of the newest parent with this id or name, or else the runs that have it."""
    alike = [
        run
        for run in runs
        if selection in (run.info.run_id, run.info.run_name, run.data.tags.get(SWEEP_TAG, ""))
        or short_name(selection) == run.info.run_name
    ]
    parent = next((run.info.run_id for run in alike if run.info.run_id in parents), None)
    if parent is None:
        return alike
    return _one_of_each_job([run for run in runs if run.data.tags.get(_PARENT) == parent])


def _one_of_each_job(runs: list[Any]) -> list[Any]:
    """Of the runs of one job, which failed or was killed and ran again: the newest finished, or else the newest."""
    chosen: dict[str, Any] = {}
    for run in runs:
        job = run.data.tags.get(JOB_TAG, run.info.run_id)
        if job not in chosen or (chosen[job].info.status != _FINISHED and run.info.status == _FINISHED):
            chosen[job] = run
    return list(chosen.values())


def _filtered(client: Any, experiments: list[str], selection: str, runs: list[Any]) -> list[Any]:
    import mlflow

    close = nearest(selection, {run.info.run_name for run in runs})
    hint = f"; did you mean '{close}'?" if close else ""
    if not _OPERATOR.search(selection):
        raise UserError(f"{selection}: no run has this id or name, and it is no MLflow filter{hint}")
    try:
        found = _search(client, experiments, selection)
    except mlflow.exceptions.MlflowException as error:
        raise UserError(
            f"{selection}: no run has this id or name, and as a filter MLflow refuses it: {_first_line(error)}{hint}"
        ) from error
    if not found:
        raise UserError(f"{selection}: no run has this id or name, and none matches it as a filter{hint}")
    return found


def _tracked(run: Any) -> TrackedRun:
    data = run.data
    return TrackedRun(run.info.run_id, run.info.run_name, run.info.status, data.params, data.metrics, data.tags)


def _first_line(error: Exception) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)
