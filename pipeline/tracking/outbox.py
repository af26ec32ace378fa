"""The outbox of a run: a folder with all that the run says, in order, until a server has it.

`outputs/outbox/<run_id>/` holds `run.json` (which server, which run), `things.jsonl` (what was said, a line a thing,
only ever appended to), `sent` (up to which byte the server has it), `files/` (copies of files, which could change) and
`refused.jsonl` (lines that the server will not take, or that are damaged, and why). Who sends holds the lock beside the
folder; the process of a run holds it until its end, so a free lock means that the run is over.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from filelock import FileLock

from pipeline.host import terminal
from pipeline.host.errors import UserError
from pipeline.host.files import shown, write_and_rename
from pipeline.tracking.delivery import FILE, MAX_POINTS, METRIC, MODEL, Thing, deliver
from pipeline.tracking.failures import http_status, may_pass, reason

_ID = re.compile(r"[\w-]{1,100}", re.ASCII)
_FOLDER, _RUN, _LOCK = "outbox", "run.json", ".lock"
# So often a server that answers otherwise may fail at one thing, until that is taken for the thing's fault.
_TRIES = 4
# Any byte has its place in the text, so that encoding it in the same way gives the line back.
_BYTES = "surrogateescape"


@dataclass(frozen=True)
class Address:
    """Whose outbox it is: the server's uri, the run's id on it, and the run's name."""

    uri: str
    run_id: str
    name: str


class Outbox:
    """One run's outbox. One thread appends, one sends.

    Whoever sends makes it after he has the lock: before, another may have sent what is there, and deleted it.

    Attributes:
        delivered: how many things the server has taken from it.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self.delivered, self._failures = folder, 0, 0
        self._things, self._refused = folder / "things.jsonl", folder / "refused.jsonl"
        self._position = self._read_position()

    @classmethod
    def create(cls, outputs: Path, address: Address) -> Outbox:
        """The outbox of a run, made where it is not there yet."""
        folder = folder_of(outputs, address.run_id)
        folder.mkdir(parents=True, exist_ok=True)
        with write_and_rename(folder / _RUN) as temporary:
            temporary.write_text(json.dumps(asdict(address), indent=1))
        return cls(folder)

    @property
    def is_there(self) -> bool:
        """Whether it was not sent and deleted meanwhile."""
        return (self.folder / _RUN).is_file()

    def address(self) -> Address:
        """Whose it is.

        Raises:
            UserError: when that cannot be read.
        """
        try:
            content = json.loads((self.folder / _RUN).read_text())
            return Address(*(content[field.name] for field in fields(Address)))  # earlier versions kept more
        except (OSError, ValueError, TypeError, LookupError) as error:
            raise UserError(f"{shown(self.folder / _RUN)} cannot be read") from error

    def append(self, thing: Thing) -> None:
        """Keep a thing to say; of its file, a copy.

        Raises:
            UserError: when it cannot be written: the disk is full.
        """
        try:
            if thing["kind"] in (FILE, MODEL):
                thing = {**thing, "path": self._copy(Path(thing["path"]), with_folder=thing["kind"] == MODEL)}
            _append(self._things, json.dumps(thing).encode())
        except OSError as error:
            raise UserError(f"{self.folder}: cannot be written: {error.strerror or error}") from error

    def _copy(self, path: Path, with_folder: bool) -> str:
        """Copy a file, or for a model all that lies beside it, into a folder of its own."""
        (self.folder / "files").mkdir(exist_ok=True)
        place = Path(tempfile.mkdtemp(dir=self.folder / "files"))
        if with_folder:
            shutil.copytree(path.parent, place, dirs_exist_ok=True)
        else:
            shutil.copy2(path, place)
        return (place / path.name).relative_to(self.folder).as_posix()

    def send(self, client: Any) -> None:
        """Say all that is left to the server, in order, and put aside what it refuses for good.

        Raises:
            Exception: what is in the way, and may pass.
        """
        run = self.address()
        while lines := self._unsent():
            for kind, group in itertools.groupby(lines, key=lambda line: _parse(line).get("kind")):
                same = list(group)
                at_once = MAX_POINTS if kind == METRIC else 1
                for start in range(0, len(same), at_once):
                    self._say(client, run, same[start : start + at_once])

    def _say(self, client: Any, run: Address, lines: list[bytes]) -> None:
        try:
            told = deliver(client, run.run_id, [self._read(line) for line in lines])
        except Exception as error:
            if self._is_servers(error, client, run.run_id):
                raise
            if len(lines) > 1:  # one of them is to blame
                for line in lines:
                    self._say(client, run, [line])
                return
            self._set_aside(run, lines[0], error)
        else:
            self.delivered += len(lines)
            if told:
                terminal.say(told)
        self._position, self._failures = self._position + sum(map(len, lines)), 0
        with write_and_rename(self.folder / "sent") as temporary:
            temporary.write_text(str(self._position))

    def _is_servers(self, error: Exception, client: Any, run_id: str) -> bool:
        """Whether it is the server's state that is in the way, and not the thing."""
        status = http_status(error)
        if status is None or not may_pass(status):
            return False
        if status < 500:
            return True
        try:
            client.get_run(run_id)
        except Exception:  # it answers to nothing
            return True
        self._failures += 1
        return self._failures < _TRIES

    def _set_aside(self, run: Address, line: bytes, error: Exception) -> None:
        if not self._refused.exists():  # the first is told
            thing = _parse(line)
            what = thing.get("name") or thing.get("kind") or "a line that is damaged"
            terminal.warn(
                f"run {run.name}: the tracking server refuses '{what}': {reason(error)}: what is not sent is kept in "
                f"{shown(self._refused)}"
            )
        entry = {"refused": reason(error), "line": line.removesuffix(b"\n").decode(errors=_BYTES)}
        _append(self._refused, json.dumps(entry).encode())

    def retry_refused(self) -> None:
        """Put what was refused behind the rest, to be tried once more."""
        for line in _whole_lines(self._refused):
            kept = _parse(line).get("line")  # none where that is damaged itself, or of an earlier version: a thing
            _append(self._things, kept.encode(errors=_BYTES) if isinstance(kept, str) else line.removesuffix(b"\n"))
        self._refused.unlink(missing_ok=True)

    def _read(self, line: bytes) -> Thing:
        thing = _parse(line)
        if not thing:
            raise ValueError("the line is damaged")
        if "path" not in thing:
            return thing
        path = (self.folder / thing["path"]).resolve()
        if not path.is_relative_to((self.folder / "files").resolve()):  # a forged line would have any file sent
            raise ValueError("its file is none of the outbox")
        return {**thing, "path": str(path)}

    def _read_position(self) -> int:
        """The beginning, where it is not known: what is said twice is said once."""
        try:
            position, end = int((self.folder / "sent").read_text()), self._things.stat().st_size
        except (OSError, ValueError):
            return 0
        return position if position <= end else 0

    def _unsent(self) -> list[bytes]:
        return _whole_lines(self._things, self._position)

    def count_left(self) -> int:
        """How many things are not said yet."""
        return len(self._unsent())

    def count_refused(self) -> int:
        """How many things the server will not take, or nobody can read."""
        return len(_whole_lines(self._refused))

    def last_status(self) -> str | None:
        """How the run says that it ended, or None where it never said."""
        said = [thing["status"] for thing in self._all_things() if "status" in thing]
        return said[-1] if said else None

    def last_time(self) -> int | None:
        """When the run last said something, in milliseconds since 1970."""
        return max((thing["at"] for thing in self._all_things() if "at" in thing), default=None)

    def _all_things(self) -> Iterator[Thing]:
        return map(_parse, _whole_lines(self._things))

    def delete_when_said(self) -> None:
        """Delete the folder, and the lock that the caller holds, if the server has everything."""
        if not self.count_left() and not self.count_refused():
            (self.folder / _RUN).unlink(missing_ok=True)  # first: without it, it is no outbox any more
            shutil.rmtree(self.folder, ignore_errors=True)
            self.folder.with_suffix(_LOCK).unlink(missing_ok=True)


def _append(path: Path, line: bytes) -> None:
    """Write a line; what a kill or a full disk has cut off before it was never said."""
    with path.open("a+b") as stream:
        end = stream.seek(0, os.SEEK_END)
        stream.seek(max(0, end - 1))
        if end and stream.read() != b"\n":
            stream.seek(0)
            stream.truncate(stream.read().rfind(b"\n") + 1)
        stream.write(line + b"\n")


def _whole_lines(path: Path, start: int = 0) -> list[bytes]:
    """The lines from byte `start` on, without one that was cut off or is being written."""
    try:
        with path.open("rb") as stream:
            stream.seek(start)
            return [line for line in stream if line.endswith(b"\n")]
    except FileNotFoundError:  # nothing was written yet, or all of it was sent
        return []


def _parse(line: bytes) -> Thing:
    """The thing in a line; an empty one where it is damaged."""
    try:
        content = json.loads(line)
    except (ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}


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


def kept(outputs: Path) -> list[Path]:
    """The folders of all outboxes, the oldest first."""
    found = []
    for path in (outputs / _FOLDER).glob(f"*/{_RUN}"):
        with contextlib.suppress(FileNotFoundError):  # a sender was done with it meanwhile
            found.append((path.stat().st_mtime, path.parent))
    return [folder for _, folder in sorted(found)]


def of_run(outputs: Path, run_id: str) -> Outbox | None:
    """The outbox of a run that has something left to say, or None."""
    outbox = Outbox(folder_of(outputs, run_id))
    return outbox if outbox.is_there and outbox.count_left() else None
