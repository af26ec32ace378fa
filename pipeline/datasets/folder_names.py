"""Names in a folder of images: which files are images, which are another system's, and what others call the parts."""

from __future__ import annotations

import os
import re
import unicodedata
from collections.abc import Iterable, Iterator
from pathlib import Path

from pipeline.host.errors import nearest

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".webp", ".tif", ".tiff", ".gif", ".ppm", ".pgm")
# What macOS, Windows and file servers leave beside pictures; names that begin with a dot are hidden anyway.
_OF_SYSTEMS = (
    *("__macosx", "icon\r", "thumbs.db", "ehthumbs.db", "desktop.ini", "$recycle.bin", "system volume information"),
    *("@eadir", "#recycle", "lost+found"),
)
# What others call a part; those before others are nearer.
_WORDS = {
    "train": ("train", "trn"),
    "test": ("test", "tst", "val", "eval", "holdout", "dev"),
}


def is_ours(name: str) -> bool:
    """Whether a file or folder is neither hidden nor another system's."""
    return not name.startswith(".") and name.casefold() not in _OF_SYSTEMS


def suffix_of(name: str) -> str:
    return os.path.splitext(name)[1].lower()


def is_image(name: str) -> bool:
    """Whether a file of that name is read."""
    return is_ours(name) and suffix_of(name) in SUFFIXES


def comparable(name: str) -> str:
    """A name in the one Unicode form in which names are compared: macOS writes others than Linux and Windows."""
    return unicodedata.normalize("NFC", name)


def folders_in(folder: Path) -> tuple[str, ...]:
    """The folders in a folder, sorted; a million files beside them are not asked one by one."""
    with os.scandir(folder) as entries:
        return tuple(sorted(entry.name for entry in entries if is_ours(entry.name) and entry.is_dir()))


def images_in(folder: Path) -> list[str]:
    """The names of the images in a folder itself, sorted."""
    with os.scandir(folder) as entries:
        return sorted(entry.name for entry in entries if is_image(entry.name) and not entry.is_dir())


def has_images(folder: Path) -> bool:
    """Whether there are images in a folder itself, without a look at more of it than is needed."""
    with os.scandir(folder) as entries:
        return any(is_image(entry.name) and not entry.is_dir() for entry in entries)


def images_below(folder: Path) -> Iterator[str]:
    """The paths of the images in a folder and in those below it, in a fixed order."""
    for place, folders, files in os.walk(folder):
        folders[:] = sorted(filter(is_ours, folders))
        yield from (f"{place}{os.sep}{name}" for name in sorted(filter(is_image, files)))


def like_part(part: str, names: Iterable[str]) -> str | None:
    """Of the names of folders the one that is likely to be meant as `part`, train or test; None where none is."""
    names = list(names)
    for word in _WORDS[part]:
        for name in names:
            if any(found.startswith(word) for found in re.findall("[a-z]+", name.casefold())):
                return name
    return nearest(part, names)
