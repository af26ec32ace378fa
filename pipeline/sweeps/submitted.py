"""Jobs that submitit has submitted: finding them again, and waiting for all of them, whatever becomes of one."""

from __future__ import annotations

import json
import os
import secrets
import signal
import subprocess
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import submitit
from submitit.core.core import InfoWatcher

from pipeline.host import terminal
from pipeline.host.errors import SubmissionError
from pipeline.host.files import write_and_rename

_LEDGER = "submitted.json"
# Slurm's words for a job that will not run again.
_ENDED = {"COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "OUT_OF_MEMORY", "BOOT_FAIL", "DEADLINE"}
_GONE = "no longer in the queue"
# How long a job of this machine may take to note that it is interrupted.
_FAREWELL_S = 60.0


class Queue(InfoWatcher):
    """What squeue says of the jobs with one name; submitit's own watcher needs an accounting database."""

    def __init__(self, name: str) -> None:
        super().__init__(delay_s=10)
        self._list = ["squeue", "--me", f"--name={name}", "--states=all", "--array", "--noheader", "--format=%i|%T"]

    def living(self) -> set[str]:
        """The numbers of the jobs that wait or run.

        Raises:
            SubmissionError: when the controller does not say.
        """
        listed = subprocess.run(self._list, capture_output=True, text=True)
        if listed.returncode != 0:  # submitted once more, each would wait for its double
            reason = next(iter(listed.stderr.splitlines()), "no reason given")
            raise SubmissionError(f"hydra/launcher=submitit_slurm: squeue: {reason}")
        return {number for number, state in _read(listed.stdout).items() if state not in _ENDED}

    def get_state(self, job_id: str, mode: str = "standard") -> str:
        return self.get_info(job_id, mode).get("State", "UNKNOWN")

    def is_done(self, job_id: str, mode: str = "standard") -> bool:
        return self.get_state(job_id, mode) in _ENDED | {_GONE}

    def _make_command(self) -> list[str]:
        return self._list

    def read_info(self, string: bytes | str) -> dict[str, dict[str, str]]:
        states = _read(string.decode() if isinstance(string, bytes) else string)
        return {number: {"State": states.get(number, _GONE)} for number in self._registered}


def _read(listed: str) -> dict[str, str]:
    pairs = (line.split("|", 1) for line in listed.splitlines() if "|" in line)
    return {number.strip(): state.strip() for number, state in pairs}


@dataclass(frozen=True)
class Entry:
    """As what a job was submitted: its number in Slurm, and submitit's folder for it, with %j for the number."""

    number: str
    folder: str


def fresh(folder: str) -> str:
    """A folder beside `folder` that no job has had: their numbers are given again, their results would be others'."""
    path = Path(folder)
    return str(path.with_name(f"{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(2)}-{path.name}"))


class Ledger:
    """As what each job of a sweep was submitted last, so that the same command finds it again."""

    def __init__(self, folder: Path) -> None:
        self._file = folder / _LEDGER

    def read(self) -> dict[str, Entry]:
        try:
            content = json.loads(self._file.read_text())
            return {slug: Entry(str(entry["number"]), str(entry["folder"])) for slug, entry in content.items()}
        except (OSError, ValueError, LookupError, TypeError, AttributeError):
            return {}  # nothing submitted yet, or damaged: all is submitted anew

    def add(self, entries: dict[str, Entry]) -> None:
        known = {slug: asdict(entry) for slug, entry in (self.read() | entries).items()}
        with write_and_rename(self._file) as temporary:
            temporary.write_text(json.dumps(known, indent=1))


def ended(jobs: dict[int, submitit.Job[Any]], patience_s: float) -> Iterator[tuple[int, submitit.Job[Any]]]:
    """Each job with its place, as soon as it has a result or will never have one.

    A result may become visible so many seconds after its job has ended.
    """
    left, since = dict(jobs), dict[int, float]()
    while left:
        for place, job in list(left.items()):
            if not job.done():
                since.pop(place, None)
                continue
            first = since.setdefault(place, time.monotonic())
            if job.paths.result_pickle.exists() or time.monotonic() - first >= patience_s:
                yield place, left.pop(place)
        if left:
            time.sleep(0.5)


def interrupt(jobs: list[submitit.LocalJob[Any]]) -> None:
    """Interrupt jobs that are processes of this machine, and wait for their end."""
    deadline = time.monotonic() + _FAREWELL_S
    while (left := [job for job in jobs if not job.done()]) and time.monotonic() < deadline:
        # Again and again: submitit ignores it in a job that has just begun.
        for job in left:
            os.kill(int(job.job_id), signal.SIGTERM)
        time.sleep(1.0)
    if left:
        terminal.warn(f"still running after {_FAREWELL_S:.0f} s: processes {', '.join(job.job_id for job in left)}")


def loss(job: submitit.Job[Any]) -> str:
    """Why there is no result, in one line, and where to read on."""
    log = job.paths.stdout
    where = f"its log is {log}" if log.exists() else "it has not begun"
    return f"its process ended without a result ({job.state.lower()}); {where}"
