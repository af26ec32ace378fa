"""A sweep: its folder, the states of its jobs, and going on after it was killed.

A sweep's id is derived from what was asked, so the same command finds the same folder,
`outputs/sweeps/<id>/`, again: `sweep.json` tells what was asked, `jobs/<job>.json` the state of each
job. Jobs that are finished are recognised and not repeated; the rest runs.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import shlex
from dataclasses import dataclass, field
from pathlib import Path

from filelock import FileLock, Timeout
from tabulate import tabulate

from pipeline.host.errors import UserError
from pipeline.host.files import write_and_rename
from pipeline.tasks import ACCURACY

FINISHED, FAILED, RUNNING, KILLED, WAITING = "finished", "failed", "running", "killed", "waiting"
_ID_LENGTH = 8
_JUDGED = "val/int8_"


@dataclass
class JobRecord:
    """What is known of one job of a sweep.

    Attributes:
        name: what differs between the jobs, as it was typed: `backend=qnnpack qat.epochs=2`.
        overrides: all that was typed for this job.
        state: waiting, running, finished, failed or killed.
        reason: why it failed, or how it was lost, in one line.
        run_id: its run in MLflow, where there is one.
        artifacts: what it ended in; a job whose artifacts would be others is not finished.
        metrics: the numbers of the whole run.
    """

    name: str
    overrides: list[str]
    state: str = WAITING
    reason: str = ""
    run_id: str | None = None
    artifacts: list[str] = field(default_factory=list)
    metrics: dict[str, float] = field(default_factory=dict)
    seconds: float = 0.0


class Job:
    """One job's record in its file, and the lock that its process holds while it runs."""

    def __init__(self, folder: Path, name: str, overrides: list[str]) -> None:
        self.name, self.overrides = name, overrides
        self.slug = sweep_id(overrides)
        self._file = folder / "jobs" / f"{self.slug}.json"
        self.lock = FileLock(folder / "jobs" / f".{self.slug}.lock")

    def read(self) -> JobRecord:
        """The record; a job that says it runs while nobody holds its lock was killed."""
        record = _record_in(self._file) or JobRecord(self.name, self.overrides)
        if record.state == RUNNING and not self.lock.is_locked and not self.is_alive():
            record.state = KILLED
        return record

    def write(self, record: JobRecord) -> None:
        self._file.parent.mkdir(parents=True, exist_ok=True)
        with write_and_rename(self._file) as temporary:
            temporary.write_text(json.dumps(dataclasses.asdict(record), indent=1))

    def is_alive(self) -> bool:
        """Whether a process is running this job."""
        try:
            with FileLock(self.lock.lock_file).acquire(timeout=0):
                return False
        except Timeout:
            return True


@dataclass
class Sweep:
    """What was asked: the overrides as typed, and the jobs that they expand to.

    Attributes:
        folder: `outputs/sweeps/<id>`.
        overrides: as typed, `backend=fbgemm,qnnpack` among them.
        jobs: the overrides of each job.
        parent_run_id: the parent run in MLflow, where there is one.
    """

    folder: Path
    overrides: list[str]
    jobs: list[list[str]]
    parent_run_id: str | None = None

    @classmethod
    def load(cls, folder: Path) -> Sweep:
        """The sweep in `folder`, as its own process wrote it.

        Raises:
            UserError: when it was cut off or edited.
        """
        file = folder / "sweep.json"
        try:
            content = json.loads(file.read_text())
            return cls(folder, content["overrides"], content["jobs"], content["parent_run_id"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UserError(
                f"{file}: cannot be read ({type(error).__name__}); the sweep's command, typed again, writes it anew"
            ) from error

    def save(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        content = {"overrides": self.overrides, "jobs": self.jobs, "parent_run_id": self.parent_run_id}
        with write_and_rename(self.folder / "sweep.json") as temporary:
            temporary.write_text(json.dumps(content, indent=1))

    @property
    def id(self) -> str:
        return self.folder.name

    @property
    def name(self) -> str:
        """What was asked, as typed, without how it is launched and where it is kept."""
        return " ".join(text for text in _asked(self.overrides) if not text.startswith("outputs="))

    def job(self, overrides: list[str]) -> Job:
        """The job with these overrides, named by what differs between the jobs."""
        # A search has no list of jobs: what it chose is what was not typed as it stands.
        common = set.intersection(*map(set, self.jobs)) if len(self.jobs) > 1 else set(self.overrides)
        differs = [override for override in _asked(overrides) if override not in common]
        return Job(self.folder, " ".join(differs) or "single job", overrides)

    def records(self) -> list[JobRecord]:
        """The record of every job, in the order in which they were asked for."""
        return [job.read() for job in self.all_jobs()]

    def all_jobs(self) -> list[Job]:
        """Every job; of a search, which finds its jobs as it goes, those that it has begun."""
        begun = map(_record_in, sorted((self.folder / "jobs").glob("*.json")))
        jobs = self.jobs or [record.overrides for record in begun if record is not None]
        return [self.job(overrides) for overrides in jobs]

    def failures(self) -> list[JobRecord]:
        """The jobs that failed, and those whose process died without a word."""
        return [record for record in self.records() if record.state in (FAILED, KILLED) and record.reason]


def _record_in(file: Path) -> JobRecord | None:
    """A job's record; None where nothing is noted, or it is damaged: the artifacts tell what is done."""
    try:
        return JobRecord(**json.loads(file.read_text()))
    except (FileNotFoundError, ValueError, TypeError):
        return None


def sweep_id(overrides: list[str]) -> str:
    """The id of what was asked, of a sweep or of one job: not of how it is launched, nor of what is forced."""
    text = "\n".join(sorted(_asked(overrides)))
    return hashlib.sha256(text.encode(errors="surrogateescape")).hexdigest()[:_ID_LENGTH]


def _asked(overrides: list[str]) -> list[str]:
    return [text for text in overrides if not text.startswith(("hydra", "+hydra", "force="))]


def untracked_users(outputs: Path) -> dict[str, list[str]]:
    """By artifact, the jobs of sweeps that stand on it and have no run in MLflow."""
    users: dict[str, list[str]] = {}
    for file in sorted((outputs / "sweeps").glob("*/sweep.json")):
        for record in Sweep.load(file.parent).records():
            for artifact in record.artifacts if record.run_id is None else ():
                users.setdefault(artifact, []).append(record.name)
    return users


def failure_lines(sweep: Sweep) -> str:
    """The failed jobs, each with its reason and the command to retry it alone."""
    failed = sweep.failures()
    lines = [f"{len(failed)} of {len(sweep.all_jobs())} jobs failed:"]
    for record in failed:
        lines.append(f"  {record.name}: {record.reason}")
        lines.append(f"    retry: {shlex.join(['python', '-m', 'pipeline', *record.overrides])}")
    return "\n".join(lines)


def status_table(sweep: Sweep) -> str:
    """Every job with its state, what it is judged by, and its latency."""
    records = sweep.records()
    # What `evaluate` reports of int8 on the validation part; without a job that has, accuracy.
    found = (name.removeprefix(_JUDGED) for one in records for name in one.metrics if name.startswith(_JUDGED))
    metric = next(found, ACCURACY.name)

    def row(record: JobRecord) -> list[str]:
        def number(metric: str) -> str:
            return f"{record.metrics[metric]:.2f}" if metric in record.metrics else ""

        validated, tested = number(f"{_JUDGED}{metric}"), number(f"int8/{metric}")
        return [record.name, record.state, validated, tested, number("int8/latency_ms"), record.reason]

    unit = ACCURACY.heading if metric == ACCURACY.name else metric
    headers = ["job", "state", f"int8 validation {unit}", f"int8 test {unit}", "int8 latency ms", "reason"]
    title = f"sweep {sweep.id}: {shlex.join(['python', '-m', 'pipeline', '-m', *sweep.overrides])}"
    return f"{title}\n{tabulate([row(record) for record in records], headers, disable_numparse=True)}"
