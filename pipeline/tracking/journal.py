"""The file in which an outbox keeps what a run says: JSON, one line a thing, only ever appended to.

A line that a kill has cut off was never said. A line that is no thing (damaged, or forged) is read as one of the kind
UNREADABLE, which holds its text, so that it is neither lost nor in the way of the others.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pipeline.tracking.delivery import Thing, is_thing

UNREADABLE = "unreadable"
# Any byte has its place in the text, so that encoding it in the same way gives the line back.
_BYTES = "surrogateescape"


class Journal:
    """The things in one file, whose own files are copies in `copies` and no others.

    Args:
        path: of the file, which need not be there yet.
        copies: the folder with a folder for each file or model.
    """

    def __init__(self, path: Path, copies: Path) -> None:
        self.path, self._copies = path, copies

    def append(self, thing: Thing) -> None:
        """Write a thing, whole or not at all.

        Raises:
            OSError: when it cannot be written.
        """
        if thing["kind"] == UNREADABLE:
            line = thing["line"].encode(errors=_BYTES)
        else:
            if "path" in thing:
                relative = Path(thing["path"]).resolve().relative_to(self._copies.parent.resolve())
                thing = {**thing, "path": relative.as_posix()}
            line = json.dumps(thing).encode()
        with self.path.open("a+b") as stream:
            start = _end_of_last_line(stream)
            stream.truncate(start)
            try:
                stream.write(line + b"\n")
                stream.flush()
            except OSError:
                stream.truncate(start)
                raise

    def read(self, start: int = 0) -> Iterator[tuple[Thing, int]]:
        """Each thing from byte `start` on, with the byte after it; without a line that was cut off."""
        try:
            stream = self.path.open("rb")
        except FileNotFoundError:  # nothing was written yet, or all of it was sent
            return
        with stream:
            stream.seek(start)
            for line in stream:
                if not line.endswith(b"\n"):
                    return
                start += len(line)
                yield self._parse(line), start

    def _parse(self, line: bytes) -> Thing:
        """A thing, with the whole path of its file."""
        unreadable = {"kind": UNREADABLE, "line": line.removesuffix(b"\n").decode(errors=_BYTES)}
        try:
            thing = json.loads(line)
            if not is_thing(thing):
                return unreadable
            path = (self._copies.parent / thing["path"]).resolve() if "path" in thing else None
        except (ValueError, RecursionError, OSError):  # a NUL, a surrogate, 100,000 brackets, a name too long
            return unreadable
        if path is None:
            return dict(thing)
        # A forged line would have any file sent, and the folder it is in deleted.
        return {**thing, "path": str(path)} if path.parent.parent == self._copies.resolve() else unreadable


def _end_of_last_line(stream: Any) -> int:
    """Where a file's last whole line ends: whatever follows was cut off."""
    end = stream.seek(0, os.SEEK_END)
    if end == 0:
        return 0
    stream.seek(end - 1)
    if stream.read(1) == b"\n":
        return int(end)
    stream.seek(0)
    return stream.read().rfind(b"\n") + 1
