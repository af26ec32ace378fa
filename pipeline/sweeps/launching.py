"""Hydra's side of a sweep whose jobs are submitted: the launchers `submitit_slurm` and `submitit_local`.

They are the submitit plugin's, with another way of waiting. The plugin gives up at the first job that has no
result, while the others run on; asks an accounting database that a cluster need not have; and submits all jobs once
more when the command is given again. Here every job is waited for, by squeue, one that died is a failure of its own,
and one that is still in Slurm's queue is found again. A Launcher implements Hydra's interface, hence the import.
"""

from __future__ import annotations

import dataclasses
import functools
import io
import json
import math
import os
import secrets
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import redirect_stderr, suppress
from pathlib import Path
from typing import Any

from hydra.core.singleton import Singleton
from hydra.core.utils import JobReturn, JobStatus
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig

from pipeline.host import terminal
from pipeline.host.errors import SubmissionError, UserError
from pipeline.host.files import how_to_install, write_and_rename
from pipeline.host.interruption import (
    INTERRUPTIONS,
    ctrl_c_for_us_alone,
    deferred,
    termination_as_interrupt,
    undisturbed,
)
from pipeline.sweeps.states import FINISHED, KILLED, RUNNING, Job, Sweep

try:
    from hydra_plugins.hydra_submitit_launcher.submitit_launcher import BaseSubmititLauncher
except ModuleNotFoundError as error:
    if not (error.name or "").startswith(("hydra_plugins", "submitit")):
        raise
    BaseSubmititLauncher = None

# submitit's own number of times that a job on this machine begins again after its time limit.
_LOCAL_RETRIES = 3
# How long a job of this machine may take to note that it is interrupted.
_FAREWELL_S = 60.0
# Slurm's words for a job that will not run again, and ours for one that it does not know any more.
_GONE = "no longer in the queue"
_ENDED = {"COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "OUT_OF_MEMORY", "BOOT_FAIL", "DEADLINE", _GONE}
# How often Slurm is asked for them.
_BETWEEN_S = 10.0


class _NotInstalled(Launcher):
    """Stands in for the plugin where it is missing, and says so when it is asked for."""

    def __init__(self, **params: Any) -> None:
        self.params = params

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        raise SubmissionError(
            "hydra/launcher=submitit_…: hydra-submitit-launcher is not installed here; "
            f"{how_to_install('slurm')} brings it"
        )

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        raise NotImplementedError


class _Submission(BaseSubmititLauncher or _NotInstalled):  # type: ignore[misc]
    """Submits the jobs of a sweep and waits for all of them."""

    # How long after its job's end a result may become visible.
    _PATIENCE_S = 0.0

    def __call__(self, *arguments: Any) -> JobReturn:
        """Run one job, in its own process; submitit calls this."""
        try:
            with termination_as_interrupt():  # submitit ignores SIGTERM, also where a job waits for another process
                return super().__call__(*arguments)
        except KeyboardInterrupt:  # cancelled: one line in the job's log instead of a traceback
            terminal.warn("interrupted")
            raise SystemExit(130) from None

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """Run the jobs with these overrides, and give what became of each; Hydra calls this.

        Raises:
            SubmissionError: when they are refused.
        """
        sweep = Sweep.load(Path(self.config.hydra.sweep.dir))
        asked = [sweep.job(list(overrides)) for overrides in job_overrides]
        returns: dict[int, JobReturn] = {}
        jobs: list[Any] = []
        try:
            with deferred():  # a job that has begun is known here
                jobs += self._start(sweep, asked, initial_job_idx)
            for place, job in self._ended(jobs):
                returns[place] = _outcome(job, asked[place])
                record = asked[place].read()
                terminal.say(f"{record.name}: {record.state}")
        except INTERRUPTIONS:
            with undisturbed():
                self._leave(jobs)
            raise
        return [returns[place] for place in range(len(jobs))]

    def _start(self, sweep: Sweep, asked: list[Job], first: int) -> list[Any]:
        """Submitit's jobs for those that are asked for, the first of which is the sweep's number `first`."""
        raise NotImplementedError

    def _leave(self, jobs: list[Any]) -> None:
        """Leave the jobs to themselves: whoever waited for them is interrupted."""

    def _submit(self, jobs: dict[int, list[str]], further: dict[str, Any]) -> list[Any]:
        """Submit jobs, by their numbers in the sweep, as the plugin does, with `further` parameters of submitit's."""
        import submitit

        parameters = self.params | further
        folder = parameters.pop("submitit_folder")
        retries = {f"{self._EXECUTOR}_max_num_timeout": parameters.pop("max_num_timeout", _LOCAL_RETRIES)}
        executor = submitit.AutoExecutor(folder=folder, cluster=self._EXECUTOR, **retries)
        executor.update_parameters(**{f"{self._EXECUTOR}_{name}": value for name, value in parameters.items()})
        state = Singleton.get_state()
        arguments = [
            (overrides, "hydra.sweep.dir", number, f"job_id_for_{number}", state) for number, overrides in jobs.items()
        ]
        try:
            with redirect_stderr(io.StringIO()):  # submitit prints a refusal, and raises it
                return list(executor.map_array(self, *zip(*arguments, strict=True)))
        except submitit.core.utils.FailedJobError as error:
            reason = next((line for line in reversed(str(error).splitlines()) if line.strip()), "no reason given")
            raise SubmissionError(f"hydra/launcher=submitit_{self._EXECUTOR}: refused: {reason}") from error

    def _fresh_folder(self) -> str:
        """One that no job has had: their numbers are given again, and then their results would be others'."""
        path = Path(self.params["submitit_folder"])
        return str(path.with_name(f"{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(2)}-{path.name}"))

    def _ended(self, jobs: list[Any]) -> Iterator[tuple[int, Any]]:
        """Each job with its place, as soon as it has a result or will never have one."""
        left, since = dict(enumerate(jobs)), dict[int, float]()
        while left:
            for place, job in list(left.items()):
                if not job.done():  # also one whose node was lost, and that Slurm has queued again
                    since.pop(place, None)
                    continue
                first = since.setdefault(place, time.monotonic())
                if job.paths.result_pickle.exists() or time.monotonic() - first >= self._PATIENCE_S:
                    yield place, left.pop(place)
            if left:
                time.sleep(0.5)


class SlurmSubmission(_Submission):
    """`hydra/launcher=submitit_slurm`: the jobs of the sweep are one array of Slurm's."""

    _EXECUTOR = "slurm"
    _PATIENCE_S = 15.0  # a shared file system shows late what another machine has written

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Check the settings; Hydra calls this.

        Raises:
            SubmissionError: when jobs cannot be submitted from here, or would have no time to work.
        """
        super().setup(hydra_context=hydra_context, task_function=task_function, config=config)
        for command in ("sbatch", "srun", "squeue", "scontrol"):
            if shutil.which(command) is None:
                raise SubmissionError(
                    f"hydra/launcher=submitit_slurm: there is no {command} here; allowed: on a machine that submits "
                    "to Slurm, or hydra/launcher=submitit_local"
                )
        limit, delay = self.params["timeout_min"], self.params["signal_delay_s"]
        if not 0 <= delay < 60 * limit:
            raise SubmissionError(
                f"hydra.launcher.signal_delay_s={delay}: allowed: less than hydra.launcher.timeout_min={limit}, "
                "in seconds, so that a job has time to work"
            )

    def _start(self, sweep: Sweep, asked: list[Job], first: int) -> list[Any]:
        import submitit

        _warn_of_one_file(self.config.tracking.enabled, self.config.tracking.uri)
        name = f"{self.params['name']}-{sweep.id}"
        queue = Queue(name)
        # By job, as what it was submitted last: so the same command finds it again.
        ledger = sweep.folder / "submitted.json"
        known: dict[str, dict[str, str]] = {}
        with suppress(OSError, ValueError):  # nothing submitted yet, or damaged: all is submitted anew
            known = json.loads(ledger.read_text())
        # Where Slurm does not say, none is submitted: each would wait for its double.
        states = queue.states() if known and self.config.force.lower() == "false" else {}
        living = {number for number, state in states.items() if state not in _ENDED}
        found = {job.slug for job in asked if job.slug in known and known[job.slug]["number"] in living}
        if found:
            terminal.say(f"{len(found)} of {len(asked)} jobs are in Slurm's queue already, and are waited for")
        new = {first + place: job for place, job in enumerate(asked) if job.slug not in found}
        if new:
            # Slurm no longer hands the processors of a job on to its steps.
            threads = self.params["cpus_per_task"]
            further = {"srun_args": [f"--cpus-per-task={threads}"]} if threads else {}
            folder = self._fresh_folder()
            overrides = {number: job.overrides for number, job in new.items()}
            begun = self._submit(overrides, {"name": name, "submitit_folder": folder, **further})
            for job, submitted in zip(new.values(), begun, strict=True):
                known[job.slug] = {"number": submitted.job_id, "folder": folder}
            with write_and_rename(ledger) as temporary:
                temporary.write_text(json.dumps(known, indent=1))
            array = begun[0].job_id.split("_")[0]
            terminal.say(f"{len(new)} jobs submitted as Slurm's {array}, named {name}: squeue --name={name}")
        jobs: list[Any] = [submitit.SlurmJob(known[job.slug]["folder"], known[job.slug]["number"]) for job in asked]
        for submitted in jobs:
            submitted.watcher = queue
        return jobs


class LocalSubmission(_Submission):
    """`hydra/launcher=submitit_local`: the jobs of the sweep are processes of this machine, all at once."""

    _EXECUTOR = "local"

    def _start(self, sweep: Sweep, asked: list[Job], first: int) -> list[Any]:
        # So that the jobs know among how many they share the processors.
        beside = f"+hydra.launcher.n_jobs={len(asked)}"
        jobs = {number: [*job.overrides, beside] for number, job in enumerate(asked, start=first)}
        with ctrl_c_for_us_alone():
            return self._submit(jobs, {"submitit_folder": self._fresh_folder()})

    def _leave(self, jobs: list[Any]) -> None:
        """Interrupt the jobs, and wait for their end."""
        deadline = time.monotonic() + _FAREWELL_S
        while (left := [job for job in jobs if not job.done()]) and time.monotonic() < deadline:
            # Again and again: submitit ignores it in a job that has just begun.
            for job in left:
                os.kill(int(job.job_id), signal.SIGTERM)
            time.sleep(1.0)
        if left:
            terminal.warn(f"still running after {_FAREWELL_S:.0f} s: processes {', '.join(job.job_id for job in left)}")


class Queue:
    """What squeue says of the jobs with one name; submitit's own watcher needs an accounting database."""

    def __init__(self, name: str) -> None:
        self._list = ["squeue", "--me", f"--name={name}", "--states=all", "--array", "--noheader", "--format=%i|%T"]
        self._states: dict[str, str] | None = None
        self._asked = -math.inf

    def states(self) -> dict[str, str]:
        """The state of each job by its number.

        Raises:
            SubmissionError: when Slurm's controller does not say.
        """
        listed = subprocess.run(self._list, capture_output=True, text=True)
        if listed.returncode != 0:
            reason = next(iter(listed.stderr.splitlines()), "no reason given")
            raise SubmissionError(f"hydra/launcher=submitit_slurm: squeue: {reason}")
        pairs = (line.split("|", 1) for line in listed.stdout.splitlines() if "|" in line)
        return {number.strip(): state.strip() for number, state in pairs}

    def get_state(self, job_id: str, mode: str = "standard") -> str:
        """One job's state, some seconds old; submitit asks for it."""
        if time.monotonic() - self._asked > _BETWEEN_S:
            with suppress(SubmissionError):  # it will say the next time
                self._states = self.states()
            self._asked = time.monotonic()
        return "UNKNOWN" if self._states is None else self._states.get(job_id, _GONE)

    def is_done(self, job_id: str, mode: str = "standard") -> bool:
        """Whether a job will not run again; submitit asks for it."""
        return self.get_state(job_id) in _ENDED


@functools.cache
def _warn_of_one_file(enabled: bool, uri: str | None) -> None:
    if enabled and (uri or "sqlite:").startswith("sqlite:"):
        terminal.warn(
            "tracking.uri: jobs on several machines would write one SQLite file, which a shared file system can "
            "damage; what they need is a tracking server: tracking=server"
        )


def _outcome(submitted: Any, job: Job) -> JobReturn:
    """What a job returned; a job that died is a failed one, and noted as killed."""
    from submitit.core.utils import UncompletedJobError

    try:
        if submitted.paths.result_pickle.exists():
            return submitted.results()[0]
        reason = f"its process ended without a result ({submitted.state.lower()})"
    except UncompletedJobError as error:  # raised outside of the run, where Hydra does not catch it
        trace = [line for line in str(error).splitlines() if line.strip()]
        reason = next((line for line in reversed(trace) if "Error: " in line), trace[0])
    log, known = submitted.paths.stdout, job.read()
    reason = f"{reason}; its log is {log}" if log.exists() else f"{reason}; it has not begun"
    if known.state == FINISHED:  # and died after it had noted so
        return JobReturn(overrides=job.overrides, status=JobStatus.COMPLETED, _return_value=known.metrics)
    if known.state == RUNNING:  # another process has taken the job up meanwhile
        reason = f"{reason}; another process is running it now"
    else:
        job.write(dataclasses.replace(known, state=KILLED, reason=reason))
    return JobReturn(overrides=job.overrides, status=JobStatus.FAILED, _return_value=UserError(reason))
