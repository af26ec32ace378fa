"""What a folder of images holds: `train/<class>/*` and `test/<class>/*`, or `<class>/*` alone.

It is looked at once a run, so that the artifact's key, the split and the decoding speak of the same files; whether
they still are the same is checked when each is decoded.
"""

from __future__ import annotations

import functools
import hashlib
import os
import re
import unicodedata
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pipeline.datasets.class_folders import SUFFIXES, by_class, comparable, folders_in, images_below, images_in
from pipeline.datasets.decoding import ImageFile, in_threads
from pipeline.datasets.spec import PartName
from pipeline.datasets.splitting import held_out_to_test
from pipeline.host import terminal
from pipeline.host.errors import UserError, nearest
from pipeline.host.files import resolved
from pipeline.host.machine import UNSHARED
from pipeline.host.remembered import memory_at, state_of
from pipeline.settings.config import DatasetConfig

# What others call a part; those before others are nearer.
_WORDS = {
    "train": ("train", "trn"),
    "test": ("test", "tst", "val", "eval", "holdout", "dev"),
}
_LAYOUT = "train/<class>/* and test/<class>/*, or <class>/* alone"
# From so many files on reading them takes a while, even of small ones.
_MANY = 5_000
UNREADABLE = "unreadable"


@dataclass(frozen=True, eq=False)
class Listing:
    """The image files of a part in a fixed order, each an `ImageFile` (N), and their labels, int64 (N)."""

    files: np.ndarray
    labels: np.ndarray

    def __len__(self) -> int:
        return len(self.files)

    def select(self, indices: np.ndarray) -> Listing:
        return Listing(self.files[indices], self.labels[indices])


# --- parts and classes


def is_split(config: DatasetConfig) -> bool:
    """Whether the folder brings its own train and test parts."""
    if not config.root:  # as conf/dataset/image_folder.yaml says: there is no folder to assume
        raise UserError(f"dataset.root must be set: allowed: a folder with {_LAYOUT}")
    root = resolved(config.root)
    return (root / "train").is_dir() and (root / "test").is_dir()


def class_names(config: DatasetConfig) -> tuple[str, ...]:
    """The classes: the folders of the train part, in the order of their names.

    Raises:
        UserError: when there is no such folder, only one of its parts, a name that is no UTF-8, or fewer than
            two classes.
    """
    folder = _folder(config, "train")
    if not folder.is_dir():
        raise UserError(f"dataset.root={folder}: no such folder; allowed: a folder with {_LAYOUT}")
    names = folders_in(folder)
    if not is_split(config):
        _refuse_parts(folder, names)
    forms: dict[str, str] = {}
    for name in names:
        # No file of an exported model could hold bytes that are no UTF-8; the others would break its lines.
        if any(unicodedata.category(one) in ("Cs", "Cc", "Zl", "Zp") for one in name):
            raise UserError(
                f"dataset.root={folder}: the class folder {name!a}: allowed: names in UTF-8, without control characters"
            )
        twin = forms.setdefault(comparable(name), name)
        if twin != name:
            raise UserError(
                f"dataset.root={folder}: the class folders {twin!a} and {name!a} have one name in two Unicode forms; "
                "allowed: one of them"
            )
    if len(names) < 2:
        raise UserError(f"dataset.root={folder}: {len(names)} class folders found; allowed: at least 2, as {_LAYOUT}")
    return names


def _refuse_parts(root: Path, names: tuple[str, ...]) -> None:
    """Refuse folders that hold folders of images and are no classes: parts by other names, or one of the two alone."""
    inner = {name: folders_in(root / name) for name in names if next(images_in(root / name), None) is None}
    parts = [name for name, folders in inner.items() if folders]
    for name in parts:
        if {"train", "test"} <= {*inner[name]}:
            raise UserError(
                f"dataset.root={root}: train/ and test/ are in {name}/; did you mean dataset.root={root / name}?"
            )
    lacking = [part for part in ("train", "test") if part not in parts]
    if len(lacking) == 2 and len(parts) < max(2, len(names)):
        return
    kin = {part: _like_part(part, [name for name in parts if name not in ("train", "test")]) for part in lacking}
    renamed = " and ".join(f"{name}/ to {part}/" for part, name in kin.items() if name)
    if len(lacking) == 2:
        found = f"train/ and test/ are not there, {', '.join(f'{name}/' for name in parts)} are"
    else:
        there = "train" if lacking == ["test"] else "test"
        found = f"{there}/ is there, {lacking[0]}/ is not"
    hint = f": rename {renamed}, or link {'them' if ' and ' in renamed else 'it'}" if renamed else ""
    raise UserError(f"dataset.root={root}: {found}{hint}; allowed: {_LAYOUT}")


def _like_part(part: str, names: list[str]) -> str | None:
    """Of the names of folders the one that is likely to be meant as `part`, train or test; None where none is."""
    for word in _WORDS[part]:
        for name in names:
            if any(found.startswith(word) for found in re.findall("[a-z]+", name.casefold())):
                return name
    return nearest(part, names)


# --- files


def files_of(config: DatasetConfig, part: PartName) -> Listing:
    """Every image file of a part; of a folder that is not split, of both parts together.

    Raises:
        UserError: when there are none, a class has none, or a class is in the test part alone.
    """
    return _list(_folder(config, part), part if is_split(config) else "train", class_names(config))


def read_of(config: DatasetConfig, part: PartName) -> Listing:
    """The image files that `part` is of: as the folder has it, or held out of a folder that is not split."""
    listing = files_of(config, part)
    return listing if is_split(config) else listing.select(held_out_to_test(listing.labels, config, part))


def fingerprint(config: DatasetConfig, part: PartName, seen: Path) -> str:
    """A hash of the layout, the classes and every file's place and content: every copy has the same."""
    # Of a folder that brings no test part, a part of the same files is held out.
    lines = [*([] if is_split(config) else ["held out"]), *class_names(config)]
    start = len(str(_folder(config, part))) + len(os.sep)
    lines += [f"{path[start:]} {digest}" for path, digest in hashes_of(config, part, seen).items()]
    return hashlib.sha256("\n".join(lines).encode(errors="surrogateescape")).hexdigest()


def hashes_of(config: DatasetConfig, part: PartName, seen: Path) -> dict[str, str]:
    """The hash of the content of every file in `files_of`, by path; `seen`: a folder that remembers them."""
    return _hashes(files_of(config, part), str(_folder(config, part)), seen)


def look_again() -> None:
    """Forget what was seen, for another run."""
    _list.cache_clear()
    _hashes.cache_clear()


def _folder(config: DatasetConfig, part: PartName) -> Path:
    root = resolved(config.root)
    return root / part if is_split(config) else root


@functools.cache
def _list(folder: Path, part: PartName, names: tuple[str, ...]) -> Listing:
    found, strays = by_class(folder, names)
    _refuse_strays(folder, part, strays, names)
    labels = np.array([label for _, label in found], dtype=np.int64)
    if not found:
        raise UserError(f"dataset.root={folder}: no images; allowed: {_LAYOUT}, files {' '.join(SUFFIXES)}")
    empty = np.flatnonzero(np.bincount(labels, minlength=len(names)) == 0)
    if part == "train" and len(empty):
        name = names[empty[0]]
        deeper = next(images_below(folder / name), None)
        where = f", the first below it is {os.path.relpath(deeper, folder)}" if deeper else ""
        raise UserError(f"dataset.root={folder}: class '{name}' has no images{where}; allowed: some in each class")
    return Listing(np.fromiter((_ask(path) for path, _ in found), dtype=object, count=len(found)), labels)


def _refuse_strays(folder: Path, part: PartName, strays: set[str], names: tuple[str, ...]) -> None:
    if not strays:
        return
    shown = ", ".join(f"'{name}'" for name in sorted(strays))
    several = "classes" if len(strays) > 1 else "class"
    alike = [(name, other) for name in sorted(strays) for other in names if name.casefold() == other.casefold()]
    hint = f"; '{alike[0][0]}' and '{alike[0][1]}' differ by case alone" if alike else ""
    raise UserError(
        f"dataset.root={folder}: {several} {shown} in {part}/ but not in train/; allowed: {', '.join(names)}{hint}"
    )


def _ask(path: str) -> ImageFile:
    try:
        status = os.stat(path)
    except OSError:  # a link that leads nowhere, for example: decoding will say so
        return ImageFile(path, None, None, None)
    return ImageFile(path, status.st_size, status.st_mtime_ns, state_of(status))


@functools.cache
def _hashes(listing: Listing, folder: str, seen: Path) -> dict[str, str]:
    """Each file is read once, and again when the file system says that it has changed."""
    memory = memory_at(seen / f"{hashlib.sha256(folder.encode(errors='surrogateescape')).hexdigest()[:16]}.json")
    hashes = {file.path: memory.recall(file.path, file.state) for file in listing.files}
    new = [file for file in listing.files if hashes[file.path] is None]
    if len(new) >= _MANY:
        terminal.say(f"dataset.root: the content of {len(new):,} new or changed files is read once")
    try:
        for file, digest in zip(new, in_threads(_hash_one, new, None, UNSHARED, "read"), strict=True):
            hashes[file.path] = digest
            if digest != UNREADABLE:  # which may be for the moment, or for this user
                memory.note(file.path, file.state, digest)
    finally:  # interrupted in a store that is there, it goes on from here
        memory.save()
    return hashes


def _hash_one(file: ImageFile) -> str:
    try:
        with open(file.path, "rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()[:32]
    except OSError:  # decoding says so, or leaves it out
        return UNREADABLE
