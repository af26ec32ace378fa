"""What was found out about files, remembered until the file system says that they changed."""

from __future__ import annotations

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
        try:
            known = json.loads(path.read_text())
        except (OSError, ValueError):
            known = {}
        self._known: dict[str, list[Any]] = known if isinstance(known, dict) else {}

    def recall(self, name: str, state: str | None) -> Any:
        """The value that was noted of this state, or None."""
        known = self._known.get(name)
        return known[1] if state is not None and known is not None and known[0] == state else None

    def note(self, name: str, state: str | None, value: Any) -> None:
        if state is not None and self._known.get(name) != [state, value]:
            self._known[name] = [state, value]
            self._changed = True

    def save(self) -> None:
        """Write what was noted, or wait for `keep` where the folder is not there: a run that is refused makes none."""
        if self._changed and self._path.parent.is_dir():
            with suppress(OSError), write_and_rename(self._path) as temporary:
                temporary.write_text(json.dumps(self._known))
                self._changed = False


_memories: dict[Path, FileMemory] = {}


def memory_at(path: Path) -> FileMemory:
    """The one of a file, so that what waits to be written is known to whoever asks next."""
    if path not in _memories:
        _memories[path] = FileMemory(path)
    return _memories[path]


def keep(folder: Path) -> None:
    """Make the folder where files are remembered, and write what waits for it."""
    with suppress(OSError):  # another user's: only time is lost
        folder.mkdir(parents=True, exist_ok=True)
    for path, memory in _memories.items():
        if path.parent == folder:
            memory.save()
