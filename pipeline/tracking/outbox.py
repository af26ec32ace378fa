"""The outbox of a run: a folder with all that the run says, in order, until a server has it.

`outputs/outbox/<run_id>/` holds `run.json` (which server, which run), `things.jsonl` (a `Journal`), `sent` (up to
which byte the server has them), `files/` (copies of files, which could change) and `refused.jsonl` (what the server
will not take, and lines that are damaged). Who sends holds the lock beside the folder; the process of a run holds it
until its end, so a free lock means that the run is over.
"""

from __future__ import annotations

import contextlib
import json
import re
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path

from filelock import FileLock

from pipeline.host.errors import UserError
from pipeline.host.files import write_and_rename
from pipeline.tracking.delivery import FILE, MAX_POINTS, METRIC, MODEL, REFUSED, STATUS, Thing
from pipeline.tracking.journal import UNREADABLE, Journal

_ID = re.compile(r"[\w-]{1,100}", re.ASCII)
_FOLDER, _RUN, _LOCK = "outbox", "run.json", ".lock"


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
    """One run's outbox. One thread appends, one sends.

    Whoever sends makes it after he has the lock: before, another may have sent what is there, and deleted it.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._files, self._sent = folder / "files", folder / "sent"
        self._things, self._refused = (Journal(folder / f"{name}.jsonl", self._files) for name in ("things", "refused"))
        self._position = self._read_position()
        self._copies = 0

    @classmethod
    def create(cls, outputs: Path, address: Address) -> Outbox:
        """The outbox of a run, made where it is not there yet."""
        folder = folder_of(outputs, address.run_id)
        folder.mkdir(parents=True, exist_ok=True)
        with write_and_rename(folder / _RUN) as temporary:
            temporary.write_text(json.dumps(asdict(address), indent=1))
        return cls(folder)

    def address(self) -> Address | None:
        """Whose it is, or None where that is not readable."""
        try:
            address = Address(**json.loads((self.folder / _RUN).read_text()))
        except (OSError, ValueError, TypeError, RecursionError):
            return None
        return address if all(isinstance(value, str) for value in asdict(address).values()) else None

    def append(self, thing: Thing) -> None:
        """Keep a thing to say; of its file, a copy.

        Raises:
            UserError: when it cannot be written.
        """
        try:
            if thing["kind"] in (FILE, MODEL):
                thing = {**thing, "path": self._copy(Path(thing["path"]), with_folder=thing["kind"] == MODEL)}
            self._things.append(thing)
        except OSError as error:
            raise UserError(f"{self.folder}: cannot be written: {error.strerror or error}") from error

    def _copy(self, path: Path, with_folder: bool) -> str:
        """Copy a file, or for a model all that lies beside it, under a number of its own."""
        while (place := self._files / str(self._copies)).exists():
            self._copies += 1
        place.mkdir(parents=True)
        for source in path.parent.iterdir() if with_folder else [path]:
            if source.is_file():
                shutil.copy2(source, place)
        return str(place / path.name)

    def _read_position(self) -> int:
        """The beginning, where it is not known: what is said twice is said once."""
        try:
            position, end = int(self._sent.read_text()), self._things.path.stat().st_size
        except (OSError, ValueError):
            return 0
        return position if 0 <= position <= end else 0

    def next_batch(self, one_by_one: bool = False) -> Batch | None:
        """What is to be said next: a thing, or metrics that follow each other; None when all is said."""
        things: list[Thing] = []
        end = self._position
        for thing, after in self._things.read(self._position):
            if things and (one_by_one or thing["kind"] != METRIC or len(things) == MAX_POINTS):
                break
            things.append(thing)
            end = after
            if thing["kind"] != METRIC:
                break
        return Batch(things, end) if things else None

    def count_left(self) -> int:
        """How many things are not said yet."""
        return sum(1 for _ in self._things.read(self._position))

    def mark_said(self, batch: Batch) -> None:
        """Note that the server has a batch, and drop the copies of its files."""
        self._advance(batch)
        for thing in batch.things:
            if "path" in thing:
                shutil.rmtree(Path(thing["path"]).parent, ignore_errors=True)

    def set_aside(self, batch: Batch, why: str) -> None:
        """Put away things that the server will not take, so that the others can go on; an unreadable one as it is."""
        for thing in batch.things:
            self._refused.append({**thing, REFUSED: why})
        self._advance(batch)

    def _advance(self, batch: Batch) -> None:
        self._position = batch.end
        with write_and_rename(self._sent) as temporary:
            temporary.write_text(str(batch.end))

    def count_refused(self) -> int:
        """How many things the server will not take, or nobody can read."""
        return sum(1 for _ in self._refused.read())

    def retry_refused(self) -> None:
        """Put what was refused behind the rest, to be tried once more; what nobody can read stays where it is."""
        refused = [thing for thing, _ in self._refused.read()]
        readable = [thing for thing in refused if thing["kind"] != UNREADABLE]
        if not readable:
            return
        said = [thing for thing, _ in self._things.read() if thing["kind"] == STATUS]
        for thing in readable:
            self._things.append({name: value for name, value in thing.items() if name != REFUSED})
        for thing in said[-1:]:  # MLflow takes a run that logs a model for one that begins, and then ends
            self._things.append(thing)
        with write_and_rename(self._refused.path) as temporary:
            temporary.touch()
            for thing in refused:
                if thing["kind"] == UNREADABLE:
                    Journal(temporary, self._files).append(thing)

    @property
    def is_there(self) -> bool:
        """Whether it was not sent and deleted meanwhile."""
        return (self.folder / _RUN).is_file()

    def last_status(self) -> str | None:
        """How the run says that it ended, or None where it never said."""
        said = [thing["status"] for thing, _ in self._things.read() if thing["kind"] == STATUS]
        return said[-1] if said else None

    def last_time(self) -> int | None:
        """When the run last said something, in milliseconds since 1970."""
        times = [thing["at"] for thing, _ in self._things.read() if "at" in thing]
        return max(times) if times else None

    def delete_when_said(self) -> bool:
        """Delete the folder, and the lock that the caller holds, if the server has everything; whether it is gone."""
        if self.count_left() or self.count_refused():
            return False
        (self.folder / _RUN).unlink(missing_ok=True)  # first: without it, it is no outbox any more
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.with_suffix(_LOCK).unlink(missing_ok=True)
        return True


def folder_of(outputs: Path, run_id: str) -> Path:
    """Where the outbox of a run is, if it has one.

    Raises:
        UserError: for an id that leads elsewhere: a server names its runs as it likes.
    """
    if not _ID.fullmatch(run_id):
        raise UserError(f"the tracking server names a run '{run_id}'; allowed: letters, digits, _ and -")
    return outputs / _FOLDER / run_id


def lock_of(folder: Path) -> FileLock:
    """The lock that whoever sends an outbox holds; taken in one thread, it may be given back in another."""
    return FileLock(folder.with_suffix(_LOCK), thread_local=False)


def kept(outputs: Path) -> list[Outbox]:
    """Every outbox, the oldest first."""
    found = []
    for path in (outputs / _FOLDER).glob(f"*/{_RUN}"):
        with contextlib.suppress(FileNotFoundError):  # a sender was done with it meanwhile
            found.append((path.stat().st_mtime, path.parent))
    return [Outbox(folder) for _, folder in sorted(found)]


def of_run(outputs: Path, run_id: str) -> Outbox | None:
    """The outbox of a run that has something left to say, or None."""
    folder = folder_of(outputs, run_id)
    outbox = Outbox(folder) if (folder / _RUN).is_file() else None
    return outbox if outbox is not None and outbox.count_left() else None
