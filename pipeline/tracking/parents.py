"""The parent run of a sweep, and what became of its children."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from pipeline.config import TrackingConfig
from pipeline.tracking.store import connect

JOB_TAG = "sweep.job"
SWEEP_TAG = "sweep.id"


def open_parent(config: TrackingConfig, outputs: Path, sweep_id: str, name: str) -> str:
    """The parent run of a sweep, made or, for a sweep that goes on, taken up again; gives its id."""
    import mlflow

    experiment = connect(mlflow, config, outputs)
    client = mlflow.MlflowClient()
    found = client.search_runs([experiment], f"tags.`{SWEEP_TAG}` = '{sweep_id}'", max_results=1)
    if found:
        client.update_run(found[0].info.run_id, status="RUNNING")
        return str(found[0].info.run_id)
    return str(client.create_run(experiment, run_name=name, tags={SWEEP_TAG: sweep_id}).info.run_id)


def close_parent(config: TrackingConfig, outputs: Path, run_id: str, status: str) -> None:
    """End a parent run as FINISHED, FAILED or KILLED."""
    import mlflow

    connect(mlflow, config, outputs)
    mlflow.MlflowClient().set_terminated(run_id, status)


def mark_killed(config: TrackingConfig, outputs: Path, parent_run_id: str, alive: set[str]) -> int:
    """Mark the children that say RUNNING, except those of the jobs in `alive`, as KILLED; how many."""
    return _mark_killed(config, outputs, parent_run_id, lambda job: job not in alive)


def mark_job_killed(config: TrackingConfig, outputs: Path, parent_run_id: str, job: str) -> int:
    """Mark the runs of one job that say RUNNING as KILLED; how many. Only whoever holds the job's lock may."""
    return _mark_killed(config, outputs, parent_run_id, lambda other: other == job)


def _mark_killed(
    config: TrackingConfig, outputs: Path, parent_run_id: str, is_dead: Callable[[str | None], bool]
) -> int:
    import mlflow

    experiment = connect(mlflow, config, outputs)
    client = mlflow.MlflowClient()
    where = f"tags.mlflow.parentRunId = '{parent_run_id}' and attributes.status = 'RUNNING'"
    dead = [run for run in client.search_runs([experiment], where) if is_dead(run.data.tags.get(JOB_TAG))]
    for run in dead:
        client.set_terminated(run.info.run_id, "KILLED")
    return len(dead)


def is_finished(config: TrackingConfig, outputs: Path, run_id: str | None) -> bool:
    """Whether the store has this run, and it ended well."""
    import mlflow

    connect(mlflow, config, outputs)
    if run_id is None:
        return False
    try:
        return str(mlflow.MlflowClient().get_run(run_id).info.status) == "FINISHED"
    except mlflow.exceptions.MlflowException:  # no such run: the store was removed since
        return False
