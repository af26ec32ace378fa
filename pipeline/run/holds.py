"""What runs under way hold: the artifacts that they replay or make, which nobody may remove before they end."""

from __future__ import annotations

import json
import os
import secrets
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from pipeline.host.files import write_and_rename


class Holds:
    """The holds of all runs on one artifact store: in `folder` a list of names each, whose lock its run has.

    A run that is killed loses the lock, and its hold with it.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    @contextmanager
    def held(self, names: Iterable[str]) -> Iterator[None]:
        """Hold these artifacts, whether they are there or not, for the time of the block."""
        self._folder.mkdir(parents=True, exist_ok=True)
        hold = self._folder / f"{os.getpid()}-{secrets.token_hex(4)}.json"
        lock = FileLock(hold.with_suffix(".lock"))
        with lock:
            with self.settled(), write_and_rename(hold) as temporary:
                temporary.write_text(json.dumps(sorted(names)))
            try:
                yield
            finally:
                hold.unlink(missing_ok=True)
        hold.with_suffix(".lock").unlink(missing_ok=True)

    @contextmanager
    def settled(self) -> Iterator[set[str]]:
        """Every name that is held; for the time of the block no run begins to hold another."""
        self._folder.mkdir(parents=True, exist_ok=True)
        with FileLock(self._folder / "settled.lock"):
            yield {name for hold in self._folder.glob("*.json") for name in _names(hold)}


def _names(hold: Path) -> list[str]:
    """The names in a hold, or none where its run has ended without a word; then it is removed."""
    try:
        with FileLock(hold.with_suffix(".lock"), timeout=0):
            hold.unlink(missing_ok=True)
        hold.with_suffix(".lock").unlink(missing_ok=True)
        return []
    except Timeout:
        with suppress(FileNotFoundError):  # its run ends at this moment
            return [str(name) for name in json.loads(hold.read_text())]
        return []
