"""Reads runs back from the tracking store.

Runs are listed once and chosen here, because which of them are parents is known only from the others.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from pipeline.host.errors import UserError, nearest, suggestion
from pipeline.reports.tracked_run import TrackedRun
from pipeline.settings.config import TrackingConfig
from pipeline.tracking.failures import asking
from pipeline.tracking.parents import JOB_TAG, SWEEP_TAG
from pipeline.tracking.starting import PARENT_TAG
from pipeline.tracking.store import deleted, open_to_read, short_name, store_uri

_FINISHED = "FINISHED"
_OPERATOR = re.compile(r"[=<>]|\b(like|in|is)\b", re.IGNORECASE)


def read_runs(
    config: TrackingConfig,
    outputs: Path,
    selection: str | None = None,
    experiment: str | None = None,
    key: str | None = None,
) -> list[TrackedRun]:
    """The runs that `selection` names, newest first, whatever their status; parents of others are left out.

    Args:
        config: which store; its experiment is not looked at.
        outputs: the folder of the default store.
        selection: the id or the name of a sweep or a parent (its children are meant) or of a run, or an MLflow
            filter; None: every run of the experiment.
        experiment: its name; None: the one with the newest run, and for an id or a name any.
        key: what names the selection, in an error's line.

    Raises:
        UserError: when the store, the experiment or the selection is not there, or the filter is wrong.
    """
    client, uri = open_to_read(config, outputs), store_uri(config, outputs)
    with asking(uri, "cannot be read"):
        names = {found.experiment_id: found.name for found in client.search_experiments()}
        if experiment is not None and experiment not in names.values():
            gone = client.get_experiment_by_name(experiment)
            if gone is not None:
                raise UserError(deleted(uri, gone.name, gone.experiment_id, "--experiment"))
            raise UserError(f"--experiment {experiment}: {suggestion(experiment, sorted(names.values()))}")
        runs = _search([key for key, name in names.items() if experiment in (None, name)])
        if not runs:
            raise UserError(f"there is no run in {uri}; python -m pipeline makes the first")
        parents = {run.data.tags[PARENT_TAG] for run in runs if PARENT_TAG in run.data.tags}
        parents |= {run.info.run_id for run in runs if SWEEP_TAG in run.data.tags}
        chosen = _named(runs, parents, selection) if selection else []
        if not chosen:
            newest = [run for run in runs if run.info.experiment_id == runs[0].info.experiment_id]
            told = f"{key} {selection}" if key else str(selection)
            chosen = _filtered(newest, selection, runs, told) if selection else newest
    return [
        TrackedRun(
            run.info.run_id, run.info.run_name, run.info.status, run.data.params, run.data.metrics, run.data.tags
        )
        for run in chosen
        if run.info.run_id not in parents
    ]


def users_of_artifacts(config: TrackingConfig, outputs: Path) -> dict[str, list[str]]:
    """By artifact, the names of the runs that name it, in every experiment; of runs that are not deleted.

    Raises:
        UserError: when the store is not there, or cannot be asked.
    """
    users: dict[str, list[str]] = {}
    client = open_to_read(config, outputs)
    with asking(store_uri(config, outputs), "cannot be read"):
        for run in _search([found.experiment_id for found in client.search_experiments()]):
            for tag, artifact in run.data.tags.items():
                if tag.startswith("artifact."):
                    users.setdefault(artifact, []).append(run.info.run_name)
    return users


def _search(experiments: list[str], filter_string: str = "") -> list[Any]:
    """Every run of the experiments that is not deleted, newest first."""
    import mlflow

    order = ["attributes.start_time DESC"]
    return list(mlflow.search_runs(experiments, filter_string, order_by=order, output_format="list"))


def _named(runs: list[Any], parents: set[str], selection: str) -> list[Any]:
    """The children of the newest parent with this id or name, or else the runs that have it."""
    alike = [
        run
        for run in runs
        if selection in (run.info.run_id, run.data.tags.get(SWEEP_TAG, ""))
        or short_name(selection) == run.info.run_name
    ]
    parent = next((run.info.run_id for run in alike if run.info.run_id in parents), None)
    if parent is None:
        return alike
    # Of the runs of one job, which failed or was killed and ran again: the newest finished, or else the newest.
    chosen: dict[str, Any] = {}
    for run in runs:
        if run.data.tags.get(PARENT_TAG) == parent:
            job = run.data.tags.get(JOB_TAG, run.info.run_id)
            if job not in chosen or (chosen[job].info.status != _FINISHED and run.info.status == _FINISHED):
                chosen[job] = run
    return list(chosen.values())


def _filtered(newest: list[Any], selection: str, runs: list[Any], told: str) -> list[Any]:
    """The runs of the newest experiment that match `selection` as a filter of MLflow's; `told`: in an error's line."""
    from mlflow.exceptions import MlflowException

    close = nearest(selection, {run.info.run_name for run in runs})
    hint = f"; did you mean '{close}'?" if close else ""
    if not _OPERATOR.search(selection):
        raise UserError(f"{told}: no run has this id or name, and it is no MLflow filter{hint}")
    try:
        found = _search([newest[0].info.experiment_id], selection)
    except MlflowException as error:
        why = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise UserError(
            f"{told}: no run has this id or name, and as a filter MLflow refuses it: {why}{hint}"
        ) from error
    if not found:
        raise UserError(f"{told}: no run has this id or name, and none matches it as a filter{hint}")
    return found
