"""Keeping this process, with all its threads, on some of the processors."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

# On Linux, one entry a thread: the system sets the processors of each on its own, and not of the process.
_THREADS = Path("/proc/self/task")


@contextmanager
def pinned(processors: int | None) -> Iterator[None]:
    """Keep this process on its first processors within the block (None, or a system that cannot: on all of them).

    That is all its threads: those that run already, as torch's do, and those that are started within the block.
    Afterwards each may run again where it might before, and a new one where this thread may.
    """
    if processors is None or not _THREADS.is_dir():
        yield
        return
    mine = os.sched_getaffinity(0)
    before: dict[int, set[int]] = {}
    for thread in _threads():
        with suppress(ProcessLookupError):  # it has ended
            before[thread] = os.sched_getaffinity(thread)
    try:
        _place({thread: set(sorted(mine)[:processors]) for thread in before})
        yield
    finally:
        _place({thread: before.get(thread, mine) for thread in _threads()})


def _threads() -> list[int]:
    return [int(path.name) for path in _THREADS.iterdir()]


def _place(where: Mapping[int, set[int]]) -> None:
    for thread, processors in where.items():
        with suppress(ProcessLookupError):
            os.sched_setaffinity(thread, processors)
