"""Which runs of a SQLite store have a living process: each holds a lock, so that the next one tells which were killed.

A process that was killed, or met a full disk, cannot note its end; its run would say RUNNING for ever.
"""

from __future__ import annotations

import hashlib
from contextlib import suppress
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from pipeline.host import terminal


class Living:
    """The locks of the runs that were begun in one store and one folder of outputs."""

    def __init__(self, outputs: Path, uri: str) -> None:
        self._folder = outputs / ".living" / hashlib.sha256(uri.encode(errors="surrogateescape")).hexdigest()[:16]
        self._folder.mkdir(parents=True, exist_ok=True)

    def door(self) -> FileLock:
        """The lock under which runs are begun and settled: between its beginning and its lock one would look dead."""
        return FileLock(self._folder / ".door")

    def hold(self, run_id: str) -> FileLock:
        """Hold the lock of a run that has just begun; the caller holds the `door`."""
        lock = FileLock(self._folder / run_id, thread_local=False)
        lock.acquire()
        return lock

    def settle(self, client: Any) -> None:
        """Mark the runs whose process is gone as KILLED, and say how many. The caller holds the `door`."""
        import mlflow

        killed = 0
        # As MLflow names its runs: a file system may leave names of its own.
        for path in self._folder.glob("[0-9a-f]" * 32):
            with suppress(Timeout), FileLock(path).acquire(timeout=0):
                where = f"attributes.run_id = '{path.name}' and attributes.status = 'RUNNING'"
                for run in mlflow.search_runs(filter_string=where, search_all_experiments=True, output_format="list"):
                    client.set_terminated(run.info.run_id, "KILLED")
                    killed += 1
                path.unlink()
        tell_killed(killed)


def tell_killed(count: int) -> None:
    """Say that so many runs were marked."""
    if count:
        terminal.say(f"{count} run{'s' if count > 1 else ''} of a killed process marked KILLED")
