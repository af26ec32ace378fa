"""What a folder of images holds: `train/<class>/*` and `test/<class>/*`, or `<class>/*` alone.

It is looked at once a run, so that the artifact's key, the split and the decoding speak of the same files; whether
they still are the same is checked when each is decoded.
"""

from __future__ import annotations

import functools
import hashlib
import os
import unicodedata
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pipeline.datasets.contents import hash_files
from pipeline.datasets.decoding import UNKNOWN, ImageFile
from pipeline.datasets.folder_names import (
    SUFFIXES,
    comparable,
    folders_in,
    has_images,
    images_below,
    images_in,
    like_part,
)
from pipeline.datasets.spec import PartName
from pipeline.datasets.splitting import split_indices
from pipeline.host.errors import UserError
from pipeline.host.files import in_project
from pipeline.host.remembered import state_of
from pipeline.settings.config import DatasetConfig

_LAYOUT = "train/<class>/* and test/<class>/*, or <class>/* alone"
# What conf/dataset/image_folder.yaml says: there is no folder to assume.
_NO_ROOT = ""


@dataclass(frozen=True, eq=False)
class Listing:
    """The image files of a part in a fixed order, each an `ImageFile` (N), and their labels, int64 (N)."""

    files: np.ndarray
    labels: np.ndarray

    def __len__(self) -> int:
        return len(self.files)

    def select(self, indices: np.ndarray) -> Listing:
        return Listing(self.files[indices], self.labels[indices])


def is_split(config: DatasetConfig) -> bool:
    """Whether the folder brings its own train and test parts."""
    if config.root == _NO_ROOT:
        raise UserError(f"dataset.root must be set: allowed: a folder with {_LAYOUT}")
    root = in_project(config.root)
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
    parts = [name for name in names if not has_images(root / name) and folders_in(root / name)]
    inner = next((name for name in parts if {"train", "test"} <= {*folders_in(root / name)}), None)
    if inner is not None:
        raise UserError(
            f"dataset.root={root}: train/ and test/ are in {inner}/; did you mean dataset.root={root / inner}?"
        )
    lacking = [part for part in ("train", "test") if part not in parts]
    if len(lacking) == 2 and len(parts) < max(2, len(names)):
        return
    kin = {part: like_part(part, [name for name in parts if name not in ("train", "test")]) for part in lacking}
    renamed = " and ".join(f"{name}/ to {part}/" for part, name in kin.items() if name)
    if len(lacking) == 2:
        found = f"train/ and test/ are not there, {', '.join(f'{name}/' for name in parts)} are"
    else:
        there = "train" if lacking == ["test"] else "test"
        found = f"{there}/ is there, {lacking[0]}/ is not"
    hint = f": rename {renamed}, or link {'them' if ' and ' in renamed else 'it'}" if renamed else ""
    raise UserError(f"dataset.root={root}: {found}{hint}; allowed: {_LAYOUT}")


def files_of(config: DatasetConfig, part: PartName) -> Listing:
    """Every image file of a part; of a folder that is split, of both parts together.

    Raises:
        UserError: when there are none, a class has none, or a class is in the test part alone.
    """
    listed: PartName = part if is_split(config) else "train"
    return _list(_folder(config, part), listed, class_names(config), config.unreadable == "skip")


def read_of(config: DatasetConfig, part: PartName) -> Listing:
    """The image files that `part` is of: as the folder has it, or held out of a folder that is not split."""
    listing = files_of(config, part)
    if is_split(config):
        return listing
    key = f"dataset.test_fraction={config.test_fraction}"
    training, test = split_indices(listing.labels, round(len(listing) * config.test_fraction), seed=0, key=key)
    return listing.select(training if part == "train" else test)


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


@functools.cache
def _hashes(listing: Listing, folder: str, seen: Path) -> dict[str, str]:
    paths = [file.path for file in listing.files]
    return dict(zip(paths, hash_files(list(listing.files), folder, seen), strict=True))


def look_again() -> None:
    """Forget what was seen, for another run."""
    _list.cache_clear()
    _hashes.cache_clear()


def _folder(config: DatasetConfig, part: PartName) -> Path:
    root = in_project(config.root)
    return root / part if is_split(config) else root


@functools.cache
def _list(folder: Path, part: PartName, names: tuple[str, ...], skip: bool) -> Listing:
    folders = defaultdict(list)  # of a name, of which there may be several Unicode forms
    for name in folders_in(folder):
        folders[comparable(name)].append(name)
    _refuse_strays(folder, part, folders.keys() - {*map(comparable, names)}, names)
    found = [
        (f"{folder}{os.sep}{name}{os.sep}{image}", label)
        for label, wanted in enumerate(names)
        for name in folders[comparable(wanted)]
        for image in images_in(folder / name)
    ]
    labels = np.array([label for _, label in found], dtype=np.int64)
    if not found:
        raise UserError(f"dataset.root={folder}: no images; allowed: {_LAYOUT}, files {' '.join(SUFFIXES)}")
    empty = np.flatnonzero(np.bincount(labels, minlength=len(names)) == 0)
    if part == "train" and len(empty):
        name = names[empty[0]]
        deeper = next(images_below(folder / name), None)
        where = f", the first below it is {os.path.relpath(deeper, folder)}" if deeper else ""
        raise UserError(f"dataset.root={folder}: class '{name}' has no images{where}; allowed: some in each class")
    files = (_ask(path, skip) for path, _ in found)
    return Listing(np.fromiter(files, dtype=object, count=len(found)), labels)


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


def _ask(path: str, skip: bool) -> ImageFile:
    try:
        status = os.stat(path)
    except OSError as error:
        if skip:  # a link that leads nowhere, for example: decoding will say so
            return ImageFile(path, UNKNOWN, UNKNOWN, None)
        raise UserError(f"dataset.root: {path} cannot be read: {error.strerror}") from error
    return ImageFile(path, status.st_size, status.st_mtime_ns, state_of(status))
