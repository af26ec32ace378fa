"""Who may use the machine when: many compute side by side, one measures alone.

A latency that is taken while other jobs train on the same cores means nothing. Whatever computes holds a shared
lock, in slices as short as it has: a batch, some files to decode, one model to export. Every latency measurement
holds an exclusive one: it waits for the slices in flight, and the others wait for it. All runs of this machine on the
same `outputs` take part; on a shared file system other machines have a lock of their own there.

Outside are what starts a process, what fetches and unpacks a data set (once), and what a process does from one slice
to the next: put a batch together, save a checkpoint, report to the tracking store.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from socket import gethostname

from filelock import ReadWriteLock


class Machine:
    """The lock of this machine, a file in `folder`; without a folder (one process alone) nothing waits.

    It can be sent to another process, which then takes it by itself.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self._folder = folder
        self._lock = None
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)
            self._lock = ReadWriteLock(str(folder / f"machine-{gethostname()}.db"))

    def __reduce__(self) -> tuple[type[Machine], tuple[Path | None]]:
        return Machine, (self._folder,)

    @contextmanager
    def computing(self, patience_s: float = -1) -> Iterator[None]:
        """Compute beside others, for the time of a slice.

        Nobody may wait within it for another process that asks for it too: that one would wait for a measurement,
        and the measurement for this one.

        Raises:
            TimeoutError: when a measurement has not ended after `patience_s` seconds (-1: waits as long as it takes).
        """
        if self._lock is None:
            yield
            return
        with self._lock.read_lock(patience_s):
            yield

    @contextmanager
    def measuring(self) -> Iterator[None]:
        """Have the machine to oneself. Not to be asked for within `computing`, nor that within this."""
        if self._lock is None:
            yield
            return
        with self._lock.write_lock():
            yield


UNSHARED = Machine()
