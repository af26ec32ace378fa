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
import shutil
from collections.abc import Sequence
from contextlib import redirect_stderr
from pathlib import Path
from typing import Any

from filelock import Timeout
from hydra.core.singleton import Singleton
from hydra.core.utils import JobReturn, JobStatus
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig

from pipeline.host import terminal
from pipeline.host.errors import SubmissionError, UserError
from pipeline.host.interruption import (
    INTERRUPTIONS,
    ctrl_c_for_us_alone,
    deferred,
    termination_as_interrupt,
    undisturbed,
)
from pipeline.sweeps.states import FINISHED, KILLED, Job, Sweep

try:
    from hydra_plugins.hydra_submitit_launcher.config import BaseQueueConf
    from hydra_plugins.hydra_submitit_launcher.submitit_launcher import BaseSubmititLauncher
except ModuleNotFoundError as error:
    if not (error.name or "").startswith(("hydra_plugins", "submitit")):
        raise
    BaseSubmititLauncher, BaseQueueConf = None, None

# submitit's own number of times that a job on this machine begins again after its time limit.
_LOCAL_RETRIES = 3


class _NotInstalled(Launcher):
    """Stands in for the plugin where it is missing, and says so when it is asked for."""

    def __init__(self, **params: Any) -> None:
        self.params = params

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        raise SubmissionError(
            "hydra/launcher=submitit: needs hydra-submitit-launcher; install with pip install -e '.[slurm]'"
        )

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        raise NotImplementedError


class _Submission(BaseSubmititLauncher or _NotInstalled):  # type: ignore[misc]
    """Submits the jobs of a sweep and waits for all of them."""

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
        from pipeline.sweeps import submitted

        sweep = Sweep.load(Path(self.config.hydra.sweep.dir))
        records = [sweep.job(list(overrides)) for overrides in job_overrides]
        wanted = {place: list(overrides) for place, overrides in enumerate(job_overrides)}
        returns: dict[int, JobReturn] = {}
        jobs: dict[int, Any] = {}
        try:
            with deferred():  # a job that has begun is known here
                jobs = self._start(sweep, records, wanted, initial_job_idx)
            for place, job in submitted.ended(jobs, self._PATIENCE_S):
                returns[place] = _outcome(job, records[place], wanted[place])
                record = records[place].read()
                terminal.say(f"{record.name}: {record.state}")
        except INTERRUPTIONS:
            with undisturbed():
                self._leave(list(jobs.values()))
            raise
        return [returns[place] for place in wanted]

    def _leave(self, jobs: list[Any]) -> None:
        """Leave the jobs to themselves: whoever waited for them is interrupted."""

    def _start(self, sweep: Sweep, records: list[Job], wanted: dict[int, list[str]], first: int) -> dict[int, Any]:
        """The submitted jobs by their places among `wanted`."""
        raise NotImplementedError

    def _submit(self, wanted: dict[int, list[str]], first: int, further: dict[str, Any]) -> dict[int, Any]:
        """Submit the jobs at these places, as the plugin does, with `further` parameters of submitit's."""
        import submitit

        parameters = self.params | further
        folder = parameters.pop("submitit_folder")
        retries = {f"{self._EXECUTOR}_max_num_timeout": parameters.pop("max_num_timeout", _LOCAL_RETRIES)}
        executor = submitit.AutoExecutor(folder=folder, cluster=self._EXECUTOR, **retries)
        common = {spec.name for spec in dataclasses.fields(BaseQueueConf)}
        executor.update_parameters(
            **{name if name in common else f"{self._EXECUTOR}_{name}": value for name, value in parameters.items()}
        )
        state = Singleton.get_state()
        arguments = [
            (overrides, "hydra.sweep.dir", first + place, f"job_id_for_{first + place}", state)
            for place, overrides in wanted.items()
        ]
        try:
            with redirect_stderr(io.StringIO()):  # submitit prints a refusal, and raises it
                jobs = executor.map_array(self, *zip(*arguments, strict=True))
        except submitit.core.utils.FailedJobError as error:
            reason = next((line for line in reversed(str(error).splitlines()) if line.strip()), "no reason given")
            raise SubmissionError(f"hydra/launcher=submitit_{self._EXECUTOR}: refused: {reason}") from error
        return dict(zip(wanted, jobs, strict=True))


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

    def _start(self, sweep: Sweep, records: list[Job], wanted: dict[int, list[str]], first: int) -> dict[int, Any]:
        import submitit

        from pipeline.sweeps.submitted import Entry, Ledger, Queue, fresh

        name = f"{self.params['name']}-{sweep.id}"
        queue, ledger = Queue(name), Ledger(sweep.folder)
        known = ledger.read() if self.config.force.lower() == "false" else {}
        earlier = {place: known[records[place].slug] for place in wanted if records[place].slug in known}
        living = queue.living() if earlier else set()
        _warn_of_one_file(self.config.tracking.enabled, self.config.tracking.uri)
        jobs: dict[int, Any] = {
            place: submitit.SlurmJob(folder=entry.folder, job_id=entry.number)
            for place, entry in earlier.items()
            if entry.number in living
        }
        if jobs:
            terminal.say(f"{len(jobs)} of {len(wanted)} jobs are in Slurm's queue already, and are waited for")
        new = {place: overrides for place, overrides in wanted.items() if place not in jobs}
        if new:
            # Slurm no longer hands the processors of a job on to its steps.
            threads = self.params["cpus_per_task"]
            further = {"srun_args": [f"--cpus-per-task={threads}"]} if threads else {}
            folder = fresh(self.params["submitit_folder"])
            begun = self._submit(new, first, {"name": name, "submitit_folder": folder, **further})
            ledger.add({records[place].slug: Entry(job.job_id, folder) for place, job in begun.items()})
            jobs |= begun
            number = next(iter(begun.values())).job_id.split("_")[0]
            terminal.say(f"{len(new)} jobs submitted as Slurm's {number}, named {name}: squeue --name={name}")
        for job in jobs.values():
            job.watcher = queue
            queue.register_job(job.job_id)
        return jobs


class LocalSubmission(_Submission):
    """`hydra/launcher=submitit_local`: the jobs of the sweep are processes of this machine, all at once."""

    _EXECUTOR = "local"

    def _start(self, sweep: Sweep, records: list[Job], wanted: dict[int, list[str]], first: int) -> dict[int, Any]:
        from pipeline.sweeps import submitted

        # So that the jobs know among how many they share the processors.
        beside = f"+hydra.launcher.n_jobs={len(wanted)}"
        jobs = {place: [*overrides, beside] for place, overrides in wanted.items()}
        with ctrl_c_for_us_alone():
            return self._submit(jobs, first, {"submitit_folder": submitted.fresh(self.params["submitit_folder"])})

    def _leave(self, jobs: list[Any]) -> None:
        from pipeline.sweeps import submitted

        submitted.interrupt(jobs)


@functools.cache
def _warn_of_one_file(enabled: bool, uri: str | None) -> None:
    if enabled and (uri or "sqlite:").startswith("sqlite:"):
        terminal.warn(
            "tracking.uri: jobs on several machines would write one SQLite file, which a shared file system can "
            "damage; what they need is a tracking server: tracking=server"
        )


def _outcome(job: Any, record: Job, overrides: list[str]) -> JobReturn:
    """What a job returned; a job that died is a failed one, and noted as killed."""
    from submitit.core.utils import UncompletedJobError

    from pipeline.sweeps.submitted import loss

    reason = ""
    if job.paths.result_pickle.exists():
        try:
            return job.results()[0]
        except UncompletedJobError as error:  # raised outside of the run, where Hydra does not catch it
            trace = [line for line in str(error).splitlines() if line.strip()]
            reason = next((line for line in reversed(trace) if "Error: " in line), trace[0])
            reason = f"{reason}; its log is {job.paths.stdout}"
    else:
        reason = loss(job)
    lost = JobReturn(overrides=overrides)
    try:
        with record.lock.acquire(timeout=0):
            known = record.read()
            if known.state == FINISHED:  # and died after it had noted so
                lost.status, lost.return_value = JobStatus.COMPLETED, known.metrics
                return lost
            record.write(dataclasses.replace(known, state=KILLED, reason=reason))
    except Timeout:  # another process has taken the job up meanwhile
        reason = f"{reason}; another process is running it now"
    lost.status, lost.return_value = JobStatus.FAILED, UserError(reason)
    return lost
