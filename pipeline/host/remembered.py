"""What was found out about files, remembered until the file system says that they changed."""

from __future__ import annotations

import functools
import json
import os
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from pipeline.host.files import write_and_rename

# A file can change twice within one tick of the clock that dates changes, which is 2 seconds at the coarsest (FAT).
_COARSEST_TICK_NS = 2_000_000_000


def state_of(status: os.stat_result) -> str | None:
    """What changes whenever the content of a file may have: size, times, place; None: too young to be sure of.

    The time of modification alone can be set to anything, and copying does so; the time of the last change of the
    inode cannot.
    """
    if time.time_ns() - status.st_ctime_ns < _COARSEST_TICK_NS:
        return None
    return f"{status.st_size} {status.st_mtime_ns} {status.st_ctime_ns} {status.st_ino}"


class FileMemory:
    """Values (JSON) by name, each with the state of what it was found in. It may be lost: that costs time alone."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._changed = False
        self._known: dict[str, list[Any]] = {}
        with suppress(OSError, ValueError, TypeError):
            self._known = dict(json.loads(path.read_text()))

    def recall(self, name: str, state: str | None) -> Any:
        """The value that was noted of this state, or None."""
        known, value = self._known.get(name, (None, None))
        return value if state is not None and known == state else None

    def note(self, name: str, state: str | None, value: Any) -> None:
        if state is not None and self._known.get(name) != [state, value]:
            self._known[name] = [state, value]
            self._changed = True

    def save(self) -> None:
        """Write what was noted since the last time."""
        if self._changed:
            with suppress(OSError):  # another user's folder: only time is lost
                self._path.parent.mkdir(parents=True, exist_ok=True)
                with write_and_rename(self._path) as temporary:
                    temporary.write_text(json.dumps(self._known))
                self._changed = False


@functools.cache
def memory_at(path: Path) -> FileMemory:
    """The one of a file: it is read once in a process."""
    return FileMemory(path)
