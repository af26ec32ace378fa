"""The outbox of a run: a folder with all that the run says, in order, until a server has it.

`outputs/outbox/<run_id>/` holds `run.json` (which server, which run), `things.jsonl` (one line a thing, only ever
appended to), `sent` (up to which byte the server has them), `files/` (copies of files, which could change) and
`refused.jsonl` (what the server will not take). A line that a kill has cut off was never said. Who sends holds the
lock beside the folder; the process of a run holds it until its end, so a free lock means that the run is over.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock

from pipeline.errors import UserError
from pipeline.files import write_and_rename
from pipeline.tracking.delivery import FILE, MAX_POINTS, METRIC, MODEL, STATUS, Thing

_FOLDER = "outbox"


@dataclass(frozen=True)
class Address:
    """Whose outbox it is.

    Attributes:
        uri: of the server.
        run_id: of the run on it.
        name: of the run.
        page: of the run in a browser, where it is known.
    """

    uri: str
    run_id: str
    name: str
    page: str = ""


@dataclass(frozen=True)
class Batch:
    """Things to say in one request, and where the next ones begin."""

    things: list[Thing]
    end: int


class Outbox:
    """One run's outbox. One thread appends, one sends."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        # Taken in one thread and given back in another.
        self.lock = FileLock(folder.with_suffix(".lock"), thread_local=False)
        self._things, self._sent, self._refused = (folder / name for name in ("things.jsonl", "sent", "refused.jsonl"))
        self._position = self._read_position()
        self._copies = 0

    @classmethod
    def create(cls, outputs: Path, address: Address) -> Outbox:
        """The outbox of a run, made where it is not there yet."""
        folder = outputs / _FOLDER / address.run_id
        folder.mkdir(parents=True, exist_ok=True)
        with write_and_rename(folder / "run.json") as temporary:
            temporary.write_text(json.dumps(asdict(address), indent=1))
        return cls(folder)

    def address(self) -> Address | None:
        """Whose it is, or None where that is not readable."""
        try:
            return Address(**json.loads((self.folder / "run.json").read_text()))
        except (OSError, ValueError, TypeError):
            return None

    def append(self, thing: Thing) -> None:
        """Keep a thing to say; of its file, a copy.

        Raises:
            UserError: when it cannot be written.
        """
        try:
            if thing["kind"] in (FILE, MODEL):
                thing = {**thing, "path": self._copy(Path(thing["path"]), with_folder=thing["kind"] == MODEL)}
            self._append_line(self._things, thing)
        except OSError as error:
            raise UserError(f"{self.folder}: cannot be written: {error.strerror or error}") from error

    def _copy(self, path: Path, with_folder: bool) -> str:
        """Copy a file, or for a model all that lies beside it, under a number of its own."""
        while (place := self.folder / "files" / str(self._copies)).exists():
            self._copies += 1
        place.mkdir(parents=True)
        for source in path.parent.iterdir() if with_folder else [path]:
            if source.is_file():
                shutil.copy2(source, place)
        return self._relative(place / path.name)

    def _relative(self, copy: Path) -> str:
        return copy.resolve().relative_to(self.folder.resolve()).as_posix()

    def _append_line(self, path: Path, thing: Thing) -> None:
        with path.open("a+b") as stream:
            start = _end_of_last_line(stream)
            stream.truncate(start)
            try:
                stream.write(json.dumps(thing).encode() + b"\n")
                stream.flush()
            except OSError:
                stream.truncate(start)
                raise

    def _read_position(self) -> int:
        try:
            return int(self._sent.read_text())
        except (OSError, ValueError):
            return 0

    def next_batch(self, one_by_one: bool = False) -> Batch | None:
        """What is to be said next: a thing, or metrics that follow each other; None when all is said."""
        things: list[Thing] = []
        end = self._position
        for thing, after in self._lines(self._position):
            if things and (one_by_one or thing["kind"] != METRIC or len(things) == MAX_POINTS):
                break
            things.append(thing)
            end = after
            if thing["kind"] != METRIC:
                break
        return Batch(things, end) if things else None

    def _lines(self, start: int = 0) -> Iterator[tuple[Thing, int]]:
        """Each thing from byte `start` on, with the byte after it; without a line that was cut off."""
        if not self._things.exists():
            return
        with self._things.open("rb") as stream:
            stream.seek(start)
            for line in stream:
                if not line.endswith(b"\n"):
                    return
                start += len(line)
                yield self._parse(line), start

    def _parse(self, line: bytes) -> Thing:
        """A thing with the whole path of its file, which is one of the outbox's copies and no other."""
        unreadable = {"kind": "unreadable"}
        try:
            thing = json.loads(line)
            if not isinstance(thing, dict) or "kind" not in thing:
                return unreadable
            path = (self.folder / str(thing["path"])).resolve() if "path" in thing else None
        except (ValueError, RecursionError, OSError):  # a NUL, a surrogate, 100,000 brackets, a name too long
            return unreadable
        if path is not None:
            # A forged line would have any file sent, and the folder it is in deleted.
            if path.parent.parent != (self.folder / "files").resolve():
                return unreadable
            thing["path"] = str(path)
        return thing

    def count_left(self) -> int:
        """How many things are not said yet."""
        return sum(1 for _ in self._lines(self._position))

    def mark_said(self, batch: Batch) -> None:
        """Note that the server has a batch, and drop the copies of its files."""
        self._advance(batch)
        for thing in batch.things:
            if "path" in thing:
                shutil.rmtree(Path(thing["path"]).parent, ignore_errors=True)

    def set_aside(self, batch: Batch, why: str) -> None:
        """Put away a thing that the server will not take, so that the others can go on."""
        for thing in batch.things:
            if "path" in thing:
                thing = {**thing, "path": self._relative(Path(thing["path"]))}
            self._append_line(self._refused, {**thing, "refused": why})
        self._advance(batch)

    def _advance(self, batch: Batch) -> None:
        self._position = batch.end
        with write_and_rename(self._sent) as temporary:
            temporary.write_text(str(batch.end))

    def count_refused(self) -> int:
        """How many things the server will not take."""
        return len(self._refused.read_bytes().splitlines()) if self._refused.exists() else 0

    def retry_refused(self) -> None:
        """Put what was refused behind the rest, to be tried once more."""
        if self._refused.exists():
            for line in self._refused.read_bytes().splitlines():
                thing = self._parse(line)
                thing.pop("refused", None)
                if "path" in thing:
                    thing["path"] = self._relative(Path(thing["path"]))
                self._append_line(self._things, thing)
            self._refused.unlink()

    def last_status(self) -> str | None:
        """How the run says that it ended, or None where it never said."""
        said = [thing["status"] for thing, _ in self._lines() if thing["kind"] == STATUS]
        return said[-1] if said else None

    def last_time(self) -> int | None:
        """When the run last said something, in milliseconds since 1970."""
        times = [thing["at"] for thing, _ in self._lines() if "at" in thing]
        return max(times) if times else None

    def delete_when_said(self) -> bool:
        """Delete the folder if the server has everything; whether it is gone."""
        if self.count_left() or self.count_refused():
            return False
        shutil.rmtree(self.folder, ignore_errors=True)
        Path(self.lock.lock_file).unlink(missing_ok=True)
        return True


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


def kept(outputs: Path) -> list[Outbox]:
    """Every outbox, the oldest first."""
    files = sorted((outputs / _FOLDER).glob("*/run.json"), key=lambda path: path.stat().st_mtime)
    return [Outbox(path.parent) for path in files]


def of_run(outputs: Path, run_id: str) -> Outbox | None:
    """The outbox of a run that has something left to say, or None."""
    folder = outputs / _FOLDER / run_id
    outbox = Outbox(folder) if (folder / "run.json").is_file() else None
    return outbox if outbox is not None and outbox.count_left() else None
