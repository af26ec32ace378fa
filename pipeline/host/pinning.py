"""Keeping this process, with all its threads, on some of the processors."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
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
    first = set(sorted(mine)[:processors])
    before: dict[int, set[int]] = {}

    def pin(thread: int) -> None:
        before[thread] = os.sched_getaffinity(thread)
        os.sched_setaffinity(thread, first)

    try:
        _to_each_thread(pin)
        yield
    finally:
        _to_each_thread(lambda thread: os.sched_setaffinity(thread, before.get(thread, mine)))


def _to_each_thread(act: Callable[[int], None]) -> None:
    """Also to those that others start meanwhile, which inherit what these had."""
    done: set[int] = set()
    while new := {int(path.name) for path in _THREADS.iterdir()} - done:
        for thread in new:
            with suppress(ProcessLookupError):  # it has ended
                act(thread)
        done |= new
