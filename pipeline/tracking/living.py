"""Which runs of a SQLite store have a living process: each holds a lock, so that the next one tells which were killed.

A process that was killed, or met a full disk, cannot note its end; its run would say RUNNING for ever.
"""

from __future__ import annotations

import hashlib
import re
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from pipeline.host import terminal

_DOOR = ".door"
# What MLflow names its runs; a file system may leave names of its own.
_RUN_ID = re.compile(r"[0-9a-f]{32}")


class Living:
    """The locks of the runs that were begun in one store and one folder of outputs."""

    def __init__(self, outputs: Path, uri: str) -> None:
        self._folder = outputs / ".living" / hashlib.sha256(uri.encode(errors="surrogateescape")).hexdigest()[:16]

    def door(self) -> FileLock:
        """The lock under which runs are begun and settled: between its beginning and its lock one would look dead."""
        self._folder.mkdir(parents=True, exist_ok=True)
        return FileLock(self._folder / _DOOR)

    def hold(self, run_id: str) -> FileLock:
        """Hold the lock of a run that has just begun; the caller holds the `door`."""
        lock = FileLock(self._folder / run_id, thread_local=False)
        lock.acquire()
        return lock

    def settle(self, mlflow: Any, client: Any) -> None:
        """Mark the runs whose process is gone as KILLED, and say how many. The caller holds the `door`."""
        count = 0
        for path in sorted(self._folder.iterdir()):
            if not _RUN_ID.fullmatch(path.name):
                continue
            try:
                with FileLock(path).acquire(timeout=0):
                    count += _end(client, path.name)
                    path.unlink()
            except Timeout:
                continue
            except mlflow.exceptions.MlflowException as error:
                if error.error_code == "RESOURCE_DOES_NOT_EXIST":  # the store was removed since
                    path.unlink(missing_ok=True)
                # Otherwise it waits for the next run: this one does not depend on it.
        tell_killed(count)


def let_go(lock: FileLock) -> None:
    """Give back the lock of a run that has noted its end."""
    Path(lock.lock_file).unlink(missing_ok=True)
    lock.release()


def tell_killed(count: int) -> None:
    """Say that so many runs were marked."""
    if count:
        terminal.say(f"{count} run{'s' if count > 1 else ''} of a killed process marked KILLED")


def _end(client: Any, run_id: str) -> bool:
    info = client.get_run(run_id).info
    if info.status != "RUNNING" or info.lifecycle_stage != "active":
        return False
    client.set_terminated(run_id, "KILLED")
    return True
