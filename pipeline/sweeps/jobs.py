"""Running the jobs of a sweep: each once, each noted, none in the way of the others."""

from __future__ import annotations

import dataclasses
import json
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from pipeline.host import terminal
from pipeline.host.errors import SubmissionError, UserError
from pipeline.host.faults import told
from pipeline.host.files import in_project
from pipeline.host.interruption import INTERRUPTIONS
from pipeline.host.redaction import mask_text
from pipeline.reports.tracked_run import METRIC_TAG, TrackedRun
from pipeline.run.artifact_store import Store
from pipeline.run.request import Request
from pipeline.run.runner import artifacts_of, run
from pipeline.settings.config import Config
from pipeline.settings.schema import flatten
from pipeline.sweeps.states import (
    FAILED,
    FINISHED,
    KILLED,
    RUNNING,
    JobRecord,
    Sweep,
    failure_lines,
    status_table,
    sweep_id,
)
from pipeline.tasks.catalogue import find as find_task
from pipeline.tracking import parents
from pipeline.tracking.failures import ServerAway
from pipeline.tracking.outbox import of_run


@contextmanager
def sweep_session(overrides: list[str], jobs: list[list[str]], config: Config) -> Iterator[Sweep]:
    """Open the sweep that was asked for, anew or to go on; at its end tell what failed.

    Raises:
        SystemExit: with status 1, when jobs failed.
        SubmissionError: when no job could be started.
    """
    outputs = in_project(config.outputs)
    sweep = Sweep(outputs / "sweeps" / sweep_id(overrides), overrides, jobs)
    parent = None
    if config.tracking.enabled:
        varying, metric = _varying(sweep, config), find_task(config.task).primary
        parent = parents.open_parent(config.tracking, outputs, sweep.id, sweep.name, varying, metric)
    sweep.parent_run_id = parent.run_id if parent is not None else None
    sweep.save()
    if parent is not None:  # what a killed process left as running, in MLflow, is KILLED
        alive = {job.slug for job in sweep.all_jobs() if job.is_alive()}
        parents.mark_killed(config.tracking, outputs, parent.run_id, lambda job: job not in alive)
    terminal.say(f"sweep {sweep.id}: {len(jobs) or 'a search of'} jobs in {sweep.folder}")
    status, summary = "KILLED", None
    try:
        yield sweep
        status = "FINISHED"
    except (SystemExit, Exception) as error:
        status = "FAILED"
        # A search has told its failures itself, and a refused submission has none; those of jobs are told below.
        if isinstance(error, SystemExit | SubmissionError) or not sweep.failures():
            raise
    finally:
        if status != "KILLED":
            summary = _compare_jobs(sweep, config)
        if parent is not None:
            try:
                parents.close_parent(config.tracking, outputs, parent.run_id, sweep.name, status, summary)
            except UserError as error:  # the results, which are about to be told, do not depend on it
                terminal.warn(str(error))
    terminal.say(status_table(sweep))
    if parent is not None and parent.way_to_jobs:
        terminal.say(f"\nin MLflow:  {parent.way_to_jobs}")
    if sweep.failures():
        print(f"error: {failure_lines(sweep)}", file=sys.stderr)
        sys.exit(1)


def _varying(sweep: Sweep, config: Config) -> list[str]:
    """The parameters in which the jobs were asked to differ; of a search, which finds its jobs, all that was typed."""
    asked = [text for text in sweep.overrides if all(text not in job for job in sweep.jobs)]
    keys = [text.lstrip("+").split("=")[0] for text in asked]
    known = dict(flatten(dataclasses.asdict(config)))
    return [name for key in keys for name in (key, f"{key}.name") if name in known]


def _compare_jobs(sweep: Sweep, config: Config) -> parents.Summary | None:
    """Put the finished jobs side by side, in the terminal and as files in the sweep's folder; None: there are none."""
    # pandas and matplotlib are imported only when there is something to compare.
    from pipeline.reports.comparison import write_comparison
    from pipeline.reports.comparison.seeds import over_seeds
    from pipeline.reports.comparison.table import compare
    from pipeline.reports.comparison.text import MAX_DESCRIPTION_CHARACTERS, text_table

    try:
        comparison = compare(_runs_of_jobs(sweep, config))
    except UserError:  # no job began a run, or none finished with all metrics: the status table is about to tell
        return None
    files = write_comparison(comparison, sweep.folder, sweep.name)
    terminal.say(f"{text_table(comparison)}\ncomparison: {sweep.folder / 'comparison.html'}\n")
    best = comparison.frame.iloc[0]
    markdown = text_table(comparison, "github", MAX_DESCRIPTION_CHARACTERS)
    tags = {"sweep.best": str(best["run"]), "sweep.best_run_id": str(best["run_id"])}
    text = f"First by the rule: **{best['run']}** (run {best['run_id']}).\n\n{markdown}"
    summary = over_seeds(comparison)
    return parents.Summary(text, files, tags, summary.metrics() if summary is not None else {})


def _runs_of_jobs(sweep: Sweep, config: Config) -> list[TrackedRun]:
    """The jobs' runs from the tracking store; what the jobs noted here where it does not have all of them."""
    from pipeline.tracking.reading import read_runs

    outputs, records = in_project(config.outputs), sweep.records()
    if sweep.parent_run_id is not None:
        if any(record.run_id and of_run(outputs, record.run_id) is not None for record in records):
            why = "the tracking server does not have all of the jobs yet"
        else:
            try:
                return read_runs(config.tracking, outputs, sweep.parent_run_id)
            except ServerAway as error:
                why = str(error)
        terminal.warn(f"{why}: what the jobs noted here is compared")
    # What was typed is all that is known here of a job's settings.
    typed = [dict(text.lstrip("+").split("=", 1) for text in record.overrides) for record in records]
    tags = {METRIC_TAG: json.dumps(dataclasses.asdict(find_task(config.task).primary))}
    return [
        TrackedRun(record.run_id or record.name, record.name, record.state.upper(), settings, record.metrics, tags)
        for record, settings in zip(records, typed, strict=True)
    ]


def run_job(request: Request, folder: Path, processes: int) -> dict[str, float]:
    """Run one job of the sweep in `folder`, or recognise that it is finished, and note its state.

    `processes` jobs run at a time (-1: one a processor) and share the threads. Gives the job's metrics.

    Raises:
        Exception: what the run raised, after it was noted as the reason of the failure.
    """
    sweep, config = Sweep.load(folder), request.config
    _divide_threads(processes)
    job = sweep.job(request.overrides)
    with job.lock:
        record, artifacts = job.read(), artifacts_of(config)
        if _is_finished(record, artifacts, config):
            terminal.say(f"{record.name}: finished already")
            return record.metrics
        has_predecessor = record.state in (RUNNING, KILLED)
        request = dataclasses.replace(request, name=record.name, parent_run_id=sweep.parent_run_id, job=job.slug)
        record = JobRecord(record.name, request.overrides, RUNNING, artifacts=artifacts)
        job.write(record)
        terminal.say(f"{record.name}:")
        started = time.perf_counter()
        try:
            with told():
                # Slurm queues again what it has lost, and no sweep begins that would settle it.
                if has_predecessor and config.tracking.enabled and sweep.parent_run_id is not None:
                    outputs, store = in_project(config.outputs), config.tracking
                    parents.mark_killed(
                        store, outputs, sweep.parent_run_id, lambda one: one == job.slug, store.patience_s
                    )
                outcome = run(request)
        except INTERRUPTIONS:
            job.write(dataclasses.replace(record, state=KILLED))
            raise
        except BaseException as error:
            text = str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
            text = mask_text(" ".join(text.split()))
            job.write(dataclasses.replace(record, state=FAILED, reason=text))
            terminal.warn(f"{record.name} failed: {text}")
            raise
        record.state, record.run_id, record.metrics = FINISHED, outcome.run_id, outcome.metrics
        record.seconds = time.perf_counter() - started
        job.write(record)
        return record.metrics


def _is_finished(record: JobRecord, artifacts: list[str], config: Config) -> bool:
    """Whether the job needs no run: same artifacts, whole, and a finished run in MLflow; says what is amiss."""
    if record.state != FINISHED or config.force.lower() != "false":
        return False
    if record.artifacts != artifacts:
        terminal.say(f"{record.name}: was finished with other stages, data or code, and runs again")
        return False
    outputs = in_project(config.outputs)
    store = Store(outputs / "artifacts")
    for name in artifacts:
        if not (store.root / name).is_dir():
            terminal.warn(f"{record.name}: {store.root / name} is not there any more, and will be made again")
            return False
        if store.find(name) is None:  # and it has said why
            return False
    if config.tracking.enabled and not parents.is_finished(config.tracking, outputs, record.run_id):
        terminal.warn(f"{record.name}: its run is not in MLflow any more, and will be logged again")
        return False
    return True


def _divide_threads(processes: int) -> None:
    """Give this process its share of the processors; under Slurm, what its job was given."""
    if os.environ.get("SUBMITIT_EXECUTOR") == "slurm":
        allotted = os.environ.get("SLURM_CPUS_PER_TASK") or os.environ.get("SLURM_CPUS_ON_NODE") or "1"
        torch.set_num_threads(int(allotted))
        return
    processors = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if processes != 1:
        torch.set_num_threads(max(1, processors // (processors if processes < 1 else processes)))
