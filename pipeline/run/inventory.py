"""What lies in the artifact store: how large and old it is, what stands on it, and what nothing stands on."""

from __future__ import annotations

import os
import re
import shutil
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from tabulate import tabulate

from pipeline.host.errors import presentable
from pipeline.host.files import amount
from pipeline.host.remembered import memory_at
from pipeline.run.artifact_store import Store, seen_folder
from pipeline.run.sources import digest_of, version_of

_PARTIAL = ".partial"
# Whatever else lies there is the user's.
_ITEM = re.compile(r"[a-z_]+-[0-9a-f]{16}(\.partial)?")
# Of the runs that stand on an artifact, so many are named.
_NAMED = 2
_LONGEST = 40


@dataclass(frozen=True)
class Item:
    """One result in the store.

    Attributes:
        name: `<stage>-<key>`.
        folders: its folder, and that of an interrupted attempt to make it.
        bytes: of all files.
        changed: when it was made, in seconds since 1970.
        users: the names of the runs and jobs that stand on it.
        is_current: whether the code and the libraries of today would still give it this key; None: it is not
            complete, and has no manifest to tell.
    """

    name: str
    folders: tuple[Path, ...]
    bytes: int
    changed: float
    users: tuple[str, ...]
    is_current: bool | None


def take_stock(store: Store, users: Mapping[str, Sequence[str]]) -> list[Item]:
    """Every result in the store, the newest first; `users`: who stands on which name."""
    folders: dict[str, list[Path]] = {}
    for path in store.root.iterdir():
        if _ITEM.fullmatch(path.name) and path.is_dir():
            folders.setdefault(path.name.removesuffix(_PARTIAL), []).append(path)
    currency = _Currency(store)
    items = []
    for name, places in folders.items():
        files = [status for place in places for status in _files(place)]
        size = sum(status.st_size for status in files)
        changed = max((status.st_mtime for status in files), default=time.time())
        current = currency.of(name) if (store.root / name).is_dir() else None
        items.append(Item(name, tuple(sorted(places)), size, changed, tuple(users.get(name, ())), current))
    return sorted(items, key=lambda item: item.changed, reverse=True)


def _files(folder: Path) -> list[os.stat_result]:
    """What the file system says of every file; of one that vanishes meanwhile, nothing."""
    found = []
    for place, _, names in os.walk(folder):
        for name in names:
            with suppress(FileNotFoundError):
                found.append(os.stat(os.path.join(place, name)))
    return found


class _Currency:
    """Whether artifacts would be made today under the same keys: by their code, their libraries and their parents."""

    def __init__(self, store: Store) -> None:
        stages = {path.name.rpartition("-")[0] for path in store.root.glob("*-*") if path.is_dir()}
        self._manifests = {folder.name: manifest for stage in stages for folder, manifest in store.manifests(stage)}
        self._memory = memory_at(seen_folder(store.root.parent) / "sources.json")

    def of(self, name: str) -> bool:
        manifest = self._manifests.get(name, {})
        hashed = manifest.get("hashed", {})
        files, libraries = hashed.get("sources"), hashed.get("libraries")
        if not files or libraries is None:  # of before keys held the code
            return False
        return (
            all(digest_of(file, self._memory) == digest for file, digest in files.items())
            and all(version_of(library) == version for library, version in libraries.items())
            and all(self.of(parent) for parent in manifest.get("inputs", {}) if parent in self._manifests)
        )


def table(items: Sequence[Item]) -> str:
    """The items as a table, and a line with their number and size."""
    words = {True: "yes", False: "no", None: "interrupted"}
    rows = [
        (item.name, amount(item.bytes), _age(item.changed), words[item.is_current], _users(item.users))
        for item in items
    ]
    headers = ("artifact", "size", "age", "used by today's code", "runs that stand on it")
    return f"{tabulate(rows, headers, colalign=('left', 'right', 'right', 'left', 'left'))}\n\n{total(items)}"


def total(items: Iterable[Item]) -> str:
    """How many they are and how large together."""
    sizes = [item.bytes for item in items]
    return f"{len(sizes):,} artifact{'' if len(sizes) == 1 else 's'}, {amount(sum(sizes))}"


def _age(changed: float) -> str:
    seconds = max(0.0, time.time() - changed)
    for unit, length in (("days", 86_400), ("hours", 3_600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.0f} {unit}"
    return f"{seconds:.0f} s"


def _users(users: Sequence[str]) -> str:
    if not users:
        return "none"
    more = f" and {len(users) - _NAMED} more" if len(users) > _NAMED else ""
    shown = (presentable(name if len(name) <= _LONGEST else f"{name[: _LONGEST - 1]}…") for name in users[:_NAMED])
    return f"{len(users)}: {', '.join(shown)}{more}"


def remove(store: Store, items: Sequence[Item]) -> list[Item]:
    """Remove these, except what a run under way holds; gives those that are removed."""
    graves = store.root / ".removed"
    grave = graves / f"{os.getpid()}-{time.time_ns()}"
    removed = []
    with store.holds().settled() as held:
        grave.mkdir(parents=True)
        for item in items:
            if item.name in held:
                continue
            for folder in item.folders:  # at once, so that no run finds half of it
                with suppress(FileNotFoundError):  # done by another meanwhile
                    folder.rename(grave / folder.name)
            removed.append(item)
    shutil.rmtree(graves, ignore_errors=True)  # also what a removal left that was killed
    return removed
