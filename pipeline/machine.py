"""Who may use the machine when: many compute side by side, one measures alone.

A latency that is taken while other jobs train on the same cores means nothing. Every batch that
computes holds a shared lock, every latency measurement an exclusive one: the measurement waits for the
batches in flight, and the others wait for the measurement. All runs of this machine on the same `outputs` take
part; on a shared file system other machines have a lock of their own there.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from socket import gethostname

from filelock import ReadWriteLock


class Machine:
    """The lock of this machine, a file in `folder`; without a folder (one process alone) nothing waits."""

    def __init__(self, folder: Path | None = None) -> None:
        self._lock = None
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)
            self._lock = ReadWriteLock(str(folder / f"machine-{gethostname()}.db"))

    @contextmanager
    def computing(self) -> Iterator[None]:
        """Compute beside others, for the time of a batch."""
        if self._lock is None:
            yield
            return
        with self._lock.read_lock():
            yield

    @contextmanager
    def measuring(self) -> Iterator[None]:
        """Have the machine to oneself."""
        if self._lock is None:
            yield
            return
        with self._lock.write_lock():
            yield
