"""What a folder of images holds: `train/<class>/*` and `test/<class>/*`, or `<class>/*` alone.

It is looked at once a run, so that the artifact's key, the split and the decoding speak of the same files; whether
they still are the same is checked when each is decoded.
"""

from __future__ import annotations

import functools
import hashlib
import os
import unicodedata
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pipeline import terminal
from pipeline.config import DatasetConfig
from pipeline.datasets.contents import hash_files
from pipeline.datasets.decoding import UNKNOWN, ImageFile
from pipeline.datasets.spec import PartName
from pipeline.errors import UserError
from pipeline.files import in_project
from pipeline.remembered import state_of

_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".webp", ".tif", ".tiff", ".gif", ".ppm", ".pgm")
_LAYOUT = "train/<class>/* and test/<class>/*, or <class>/* alone"
# What others call a part that is not trained on.
_NAMES_OF_PARTS = ("val", "valid", "validation", "eval")
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
    names = _folders(folder)
    for part, other in (("train", "test"), ("test", "train")):
        if not is_split(config) and part in names and not _images(folder / part) and _folders(folder / part):
            kin = next((f": rename {name}/, or link it" for name in names if name.lower() in _NAMES_OF_PARTS), "")
            raise UserError(f"dataset.root={folder}: {part}/ is there, {other}/ is not{kin}; allowed: {_LAYOUT}")
    for name in names:
        # No file of an exported model could hold bytes that are no UTF-8; the others would break its lines.
        if any(unicodedata.category(one) in ("Cs", "Cc", "Zl", "Zp") for one in name):
            raise UserError(
                f"dataset.root={folder}: the class folder {name!a}: allowed: names in UTF-8, without control characters"
            )
    if len(names) < 2:
        raise UserError(f"dataset.root={folder}: {len(names)} class folders found; allowed: at least 2, as {_LAYOUT}")
    return names


def files_of(config: DatasetConfig, part: PartName) -> Listing:
    """Every image file of a part; of a folder that is split, of both parts together.

    Raises:
        UserError: when there are none, a class has none, or a class is in the test part alone.
    """
    listed: PartName = part if is_split(config) else "train"
    return _list(_folder(config, part), listed, class_names(config), config.unreadable == "skip")


def fingerprint(config: DatasetConfig, part: PartName, seen: Path) -> str:
    """A hash of the layout, the classes and every file's place and content: every copy has the same."""
    # Of a folder that brings no test part, a part of the same files is held out.
    lines = [*([] if is_split(config) else ["held out"]), *class_names(config)]
    lines.append(_content(files_of(config, part), str(_folder(config, part)), seen))
    return hashlib.sha256("\n".join(lines).encode(errors="surrogateescape")).hexdigest()


@functools.cache
def _content(listing: Listing, folder: str, seen: Path) -> str:
    start = len(folder) + len(os.sep)
    hashes = hash_files(list(listing.files), folder, seen)
    lines = (f"{file.path[start:]} {digest}" for file, digest in zip(listing.files, hashes, strict=True))
    return hashlib.sha256("\n".join(lines).encode(errors="surrogateescape")).hexdigest()


def look_again() -> None:
    """Forget what was seen, for another run."""
    _list.cache_clear()
    _content.cache_clear()


def _folder(config: DatasetConfig, part: PartName) -> Path:
    root = in_project(config.root)
    return root / part if is_split(config) else root


def _folders(folder: Path) -> tuple[str, ...]:
    return tuple(sorted(path.name for path in folder.iterdir() if path.is_dir() and path.name[0] != "."))


@functools.cache
def _list(folder: Path, part: PartName, names: tuple[str, ...], skip: bool) -> Listing:
    strays = [name for name in _folders(folder) if name not in names]
    if strays:
        shown = ", ".join(f"'{name}'" for name in strays)
        several = "classes" if len(strays) > 1 else "class"
        raise UserError(
            f"dataset.root={folder}: {several} {shown} in {part}/ but not in train/; allowed: {', '.join(names)}"
        )
    found = [(path, label) for label, name in enumerate(names) for path in _images(folder / name)]
    labels = np.array([label for _, label in found], dtype=np.int64)
    if not found:
        raise UserError(f"dataset.root={folder}: no images; allowed: {_LAYOUT}, files {' '.join(_SUFFIXES)}")
    empty = np.flatnonzero(np.bincount(labels, minlength=len(names)) == 0)
    if part == "train" and len(empty):
        raise UserError(f"dataset.root={folder}: class '{names[empty[0]]}' has no images; allowed: some in each class")
    files = (_ask(path, skip) for path, _ in found)
    if len(empty):
        lacking = ", ".join(f"'{names[label]}'" for label in empty)
        terminal.warn(f"dataset.root={folder}: no images of {lacking}: the accuracy says nothing of them")
    return Listing(np.fromiter(files, dtype=object, count=len(found)), labels)


def _images(folder: Path) -> list[str]:
    """The paths of a class's images, in the order of their names; a test part may lack the class."""
    if not folder.is_dir():
        return []
    names = sorted(name for name in os.listdir(folder) if os.path.splitext(name)[1].lower() in _SUFFIXES)
    return [f"{folder}{os.sep}{name}" for name in names]


def _ask(path: str, skip: bool) -> ImageFile:
    try:
        status = os.stat(path)
    except OSError as error:
        if skip:  # a link that leads nowhere, for example: decoding will say so
            return ImageFile(path, UNKNOWN, UNKNOWN, None)
        raise UserError(f"dataset.root: {path} cannot be read: {error.strerror}") from error
    return ImageFile(path, status.st_size, status.st_mtime_ns, state_of(status))
