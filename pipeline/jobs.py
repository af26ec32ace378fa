"""Running the jobs of a sweep: each once, each noted, none in the way of the others."""

from __future__ import annotations

import dataclasses
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from pipeline import terminal, tracking
from pipeline.config import Config
from pipeline.errors import UserError
from pipeline.files import in_project
from pipeline.request import Request
from pipeline.runner import artifacts_of, run
from pipeline.sweep import (
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


@contextmanager
def sweep_session(overrides: list[str], jobs: list[list[str]], config: Config) -> Iterator[Sweep]:
    """Open the sweep that was asked for, anew or to go on; at its end tell what failed.

    Raises:
        SystemExit: with status 1, when jobs failed.
    """
    outputs = in_project(config.outputs)
    sweep = Sweep(outputs / "sweeps" / sweep_id(overrides), overrides, jobs)
    tracked = config.tracking.enabled
    if tracked:
        name = " ".join(overrides)
        sweep.parent_run_id = tracking.open_parent(config.tracking, outputs, sweep.id, name)
    sweep.save()
    _settle_killed(sweep, config)
    terminal.say(f"sweep {sweep.id}: {len(jobs) or 'a search of'} jobs in {sweep.folder}")
    status = "KILLED"
    try:
        yield sweep
        status = "FINISHED"
    except SystemExit:  # a search that has told its failures itself
        status = "FAILED"
        raise
    except Exception:
        status = "FAILED"
        if not sweep.failures():
            raise
    finally:
        if tracked and sweep.parent_run_id is not None:
            tracking.close_parent(config.tracking, outputs, sweep.parent_run_id, status)
    terminal.say(status_table(sweep))
    if sweep.failures():
        print(f"error: {failure_lines(sweep)}", file=sys.stderr)
        sys.exit(1)


def run_job(request: Request, folder: Path, processes: int) -> dict[str, float]:
    """Run one job of the sweep in `folder`, or recognise that it is finished, and note its state.

    `processes` jobs run at a time (-1: one a processor) and share the threads. Gives the job's metrics.

    Raises:
        Exception: what the run raised, after it was noted as the reason of the failure.
    """
    sweep = Sweep.load(folder)
    _divide_threads(processes)
    job = sweep.job(request.overrides)
    with job.lock:
        record = job.read()
        artifacts = artifacts_of(request.config)
        if _is_finished(record, artifacts, request.config):
            terminal.say(f"{record.name}: finished already")
            return record.metrics
        request = dataclasses.replace(request, name=record.name, parent_run_id=sweep.parent_run_id, job=job.slug)
        record = JobRecord(record.name, request.overrides, RUNNING)
        job.write(record)
        terminal.say(f"{record.name}:")
        started = time.time()
        try:
            outcome = run(request)
        except KeyboardInterrupt:
            job.write(dataclasses.replace(record, state=KILLED))
            raise
        except BaseException as error:
            text = str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
            job.write(dataclasses.replace(record, state=FAILED, reason=" ".join(text.split())))
            terminal.warn(f"{record.name} failed: {' '.join(text.split())}")
            raise
        done = dataclasses.replace(
            record,
            state=FINISHED,
            run_id=outcome.run_id,
            artifacts=artifacts,
            metrics=outcome.metrics,
            seconds=time.time() - started,
        )
        job.write(done)
        return outcome.metrics


def _is_finished(record: JobRecord, artifacts: list[str], config: Config) -> bool:
    """Whether the job needs no run: same artifacts, still there, and a finished run in MLflow."""
    if record.state != FINISHED or record.artifacts != artifacts or config.force.lower() != "false":
        return False
    root = in_project(config.outputs)
    if not all((root / "artifacts" / name).is_dir() for name in artifacts):
        return False
    return not config.tracking.enabled or tracking.is_finished(config.tracking, root, record.run_id)


def _divide_threads(processes: int) -> None:
    """Give this process its share of the processors."""
    processors = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if processes != 1:
        torch.set_num_threads(max(1, processors // (processors if processes < 1 else processes)))


def _settle_killed(sweep: Sweep, config: Config) -> None:
    """Mark what a killed process left as running, in MLflow, as KILLED; live jobs are left alone."""
    if not config.tracking.enabled or sweep.parent_run_id is None:
        return
    alive = {job.slug for job in sweep.all_jobs() if job.is_alive()}
    count = tracking.mark_killed(config.tracking, in_project(config.outputs), sweep.parent_run_id, alive)
    if count:
        terminal.say(f"{count} run{'s' if count > 1 else ''} of a killed process marked KILLED")
