"""What lies in the artifact store: how large and old it is, what stands on it, and what nothing stands on."""

from __future__ import annotations

import re
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass

from tabulate import tabulate

from pipeline.host.errors import presentable
from pipeline.host.files import amount
from pipeline.host.remembered import memory_at
from pipeline.run.artifact_store import PARTIAL, Store, seen_folder
from pipeline.run.sources import digest_of, version_of

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
        bytes: of all files, those of an interrupted attempt to make it among them.
        changed: when it was made, in seconds since 1970.
        users: the names of the runs and jobs that stand on it.
        is_current: whether the code and the libraries of today would still give it this key; None: it is not
            complete, and has no manifest to tell.
    """

    name: str
    bytes: int
    changed: float
    users: tuple[str, ...]
    is_current: bool | None


def take_stock(store: Store, users: Mapping[str, Sequence[str]]) -> list[Item]:
    """Every result in the store, the newest first; `users`: who stands on which name."""
    found = [path for path in store.root.iterdir() if _ITEM.fullmatch(path.name) and path.is_dir()]
    names = {path.name.removesuffix(PARTIAL) for path in found}
    manifests = {
        folder.name: manifest
        for stage in {name.rpartition("-")[0] for name in names}
        for folder, manifest in store.manifests(stage)
    }
    memory = memory_at(seen_folder(store.root.parent) / "sources.json")

    def is_current(name: str) -> bool:
        """Whether today's code, libraries and parents would give it the same key."""
        hashed = manifests[name].get("hashed", {})
        if not hashed.get("sources") or "libraries" not in hashed:  # of before keys held the code
            return False
        return (
            all(digest_of(file, memory) == digest for file, digest in hashed["sources"].items())
            and all(version_of(library) == version for library, version in hashed["libraries"].items())
            and all(is_current(parent) for parent in manifests[name].get("inputs", {}) if parent in manifests)
        )

    def item(name: str) -> Item:
        size, changed = 0, 0.0
        for folder in (store.root / name, store.root / f"{name}{PARTIAL}"):
            for path in folder.rglob("*"):
                with suppress(FileNotFoundError):  # it vanishes meanwhile
                    if path.is_file():
                        size, changed = size + path.stat().st_size, max(changed, path.stat().st_mtime)
        current = is_current(name) if name in manifests else None
        return Item(name, size, changed or time.time(), tuple(users.get(name, ())), current)

    return sorted(map(item, names), key=lambda item: item.changed, reverse=True)


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
