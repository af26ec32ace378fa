"""Who may use the machine when: many compute side by side, one measures alone.

A latency that is taken while other jobs train on the same cores means nothing. Every batch that
computes holds a shared lock, every latency measurement an exclusive one: the measurement waits for the
batches in flight, and the others wait for the measurement. All runs on the same `outputs` take part.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import ReadWriteLock


class Machine:
    """The lock of one machine, a file; without a file (one process alone) nothing waits."""

    def __init__(self, lock_file: Path | None = None) -> None:
        self._lock = None
        if lock_file is not None:
            lock_file.parent.mkdir(parents=True, exist_ok=True)
            self._lock = ReadWriteLock(str(lock_file))

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
