"""Which runs of a SQLite store have a living process: each holds a lock, so that the next one tells which were killed.

A process that was killed, or met a full disk, cannot note its end; its run would say RUNNING for ever.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from pipeline import terminal

_FOLDER, _DOOR = ".living", ".door"


def door(outputs: Path) -> FileLock:
    """The lock under which runs are begun and settled: between a run's beginning and its lock it would look dead."""
    folder = outputs / _FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    return FileLock(folder / _DOOR)


def hold(outputs: Path, run_id: str) -> FileLock:
    """Hold the lock of a run that has just begun; the caller holds the `door`."""
    lock = FileLock(outputs / _FOLDER / run_id, thread_local=False)
    lock.acquire()
    return lock


def let_go(lock: FileLock) -> None:
    """Give back the lock of a run that has noted its end."""
    Path(lock.lock_file).unlink(missing_ok=True)
    lock.release()


def settle(mlflow: Any, client: Any, outputs: Path) -> int:
    """Mark the runs whose process is gone as KILLED; how many. The caller holds the `door`."""
    count = 0
    for path in sorted((outputs / _FOLDER).iterdir()):
        if path.name == _DOOR:
            continue
        try:
            with FileLock(path).acquire(timeout=0):
                count += _is_settled(mlflow, client, path.name)
                path.unlink()
        except Timeout:
            continue
    return count


def tell_killed(count: int) -> None:
    """Say that so many runs were marked."""
    if count:
        terminal.say(f"{count} run{'s' if count > 1 else ''} of a killed process marked KILLED")


def _is_settled(mlflow: Any, client: Any, run_id: str) -> bool:
    try:
        if client.get_run(run_id).info.status != "RUNNING":
            return False
        client.set_terminated(run_id, "KILLED")
    except mlflow.exceptions.MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        return False  # its store was removed since
    return True
