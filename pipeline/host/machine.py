"""Who may use the machine when: many compute side by side, one measures alone.

A latency that is taken while other jobs train on the same cores means nothing. Whatever computes holds a shared
lock, in slices as short as it has: a batch, some files to decode, one model to export. Every latency measurement
holds an exclusive one: it waits for the slices in flight, and the others wait for it. All runs of this machine on the
same `outputs` take part; on a shared file system other machines have a lock of their own there.

Outside are what starts a process, what fetches and unpacks a data set (once), and what a process does from one slice
to the next: put a batch together, save a checkpoint, report to the tracking store.
"""

from __future__ import annotations

import functools
import os
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from socket import gethostname

from filelock import ReadWriteLock


def _lock_in(folder: Path) -> ReadWriteLock:
    return _lock(folder / f"machine-{gethostname()}.db", os.getpid())


@functools.lru_cache
def _lock(file: Path, process: int) -> ReadWriteLock:
    """A lock is of the process that made it: one that was forked has another."""
    file.parent.mkdir(parents=True, exist_ok=True)
    return ReadWriteLock(str(file))


@dataclass(frozen=True)
class Machine:
    """The lock of this machine, a file in `folder`; without a folder (one process alone) nothing waits."""

    folder: Path | None = None

    def computing(self) -> AbstractContextManager[None]:
        """Compute beside others, for the time of a slice.

        Nobody may wait within it for another process that asks for it too: that one would wait for a measurement,
        and the measurement for this one.
        """
        return nullcontext() if self.folder is None else _lock_in(self.folder).read_lock()

    def measuring(self) -> AbstractContextManager[None]:
        """Have the machine to oneself. Not to be asked for within `computing`, nor that within this."""
        return nullcontext() if self.folder is None else _lock_in(self.folder).write_lock()


UNSHARED = Machine()


def machine_of(artifacts: Path) -> Machine:
    """The lock of this machine among all runs that have their results in the folder `artifacts`."""
    return Machine(artifacts / ".locks")
