"""Folders of images by their names alone: which files are images, and which folder is of which class.

It imports nothing but the standard library: whoever judges an exported model need not wait for torch.
"""

from __future__ import annotations

import os
import unicodedata
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".webp", ".tif", ".tiff", ".gif", ".ppm", ".pgm")
# What macOS, Windows and file servers leave beside pictures; names that begin with a dot are hidden anyway.
_OF_SYSTEMS = (
    *("__macosx", "icon\r", "thumbs.db", "ehthumbs.db", "desktop.ini", "$recycle.bin", "system volume information"),
    *("@eadir", "#recycle", "lost+found"),
)


def is_ours(name: str) -> bool:
    """Whether a file or folder is neither hidden nor another system's."""
    return not name.startswith(".") and name.casefold() not in _OF_SYSTEMS


def suffix_of(name: str) -> str:
    return os.path.splitext(name)[1].lower()


def is_image(name: str) -> bool:
    """Whether a file of that name is read."""
    return is_ours(name) and suffix_of(name) in SUFFIXES


def folders_in(folder: Path) -> tuple[str, ...]:
    """The folders in a folder, sorted; a million files beside them are not asked one by one."""
    with os.scandir(folder) as entries:
        return tuple(sorted(entry.name for entry in entries if is_ours(entry.name) and entry.is_dir()))


def images_in(folder: Path) -> Iterator[str]:
    """The names of the images in a folder itself, in no order."""
    with os.scandir(folder) as entries:
        yield from (entry.name for entry in entries if is_image(entry.name) and not entry.is_dir())


def images_below(folder: Path) -> Iterator[str]:
    """The paths of the images in a folder and in those below it, in a fixed order."""
    for place, folders, files in os.walk(folder):
        folders[:] = sorted(filter(is_ours, folders))
        yield from (f"{place}{os.sep}{name}" for name in sorted(filter(is_image, files)))


def comparable(name: str) -> str:
    """A name in the one Unicode form in which names are compared: macOS writes others than Linux and Windows."""
    return unicodedata.normalize("NFC", name)


def by_class(folder: Path, names: Sequence[str]) -> tuple[list[tuple[str, int]], set[str]]:
    """The images in the folders of the classes `names`, as path and number of the class, in a fixed order.

    Besides them the names of the folders that are of no class.
    """
    folders = defaultdict(list)  # of a name, of which there may be several Unicode forms
    for name in folders_in(folder):
        folders[comparable(name)].append(name)
    found = [
        (f"{folder}{os.sep}{name}{os.sep}{image}", label)
        for label, wanted in enumerate(names)
        for name in folders[comparable(wanted)]
        for image in sorted(images_in(folder / name))
    ]
    return found, folders.keys() - {*map(comparable, names)}
