"""What is odd about a folder of images, and might spoil a run without a word: a line each, by its name.

What its names tell is looked for in every run. What the files hold is looked for once, in some of them, and noted:
copies in both parts, pictures of one colour, pictures that come out dark.
"""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from pipeline.datasets import folder
from pipeline.datasets.class_folders import SUFFIXES, folders_in, images_below, is_image, is_ours, suffix_of
from pipeline.datasets.decoding import ImageFile, in_threads, reading
from pipeline.datasets.folder import UNREADABLE, Listing
from pipeline.datasets.pictures import Reading, is_deep, read_image, white_of
from pipeline.datasets.preprocessing import fit
from pipeline.datasets.splitting import chosen_to_test, training_and_validation
from pipeline.host.errors import UserError
from pipeline.host.files import resolved
from pipeline.host.machine import Machine
from pipeline.host.remembered import memory_at
from pipeline.settings.config import DatasetConfig

# Raise it when what is looked for in the files changes.
_VERSION = 1
# Of each kind of thing, so many are named.
_NAMED = 5
# Files of each part that are decoded to look at them.
_LOOKED_AT = 500
# A picture is dark whose brightest value is below this share of white, as of 12 bits that are read as 16.
_DARK = 1 / 4


def inspect(config: DatasetConfig, seen: Path, machine: Machine) -> dict[str, str]:
    """Every line by its name; those that tell of the files' content are kept in the folder `seen`.

    Raises:
        UserError: when there is no such folder.
    """
    root = resolved(config.root)
    found = {
        "files_not_read": _files_not_read(config, root),
        "other_suffixes": _other_suffixes(config, root),
        "folders_not_read": _folders_not_read(config, root),
        "class_names": _classes_alike(config),
        **_noted(config, seen, machine),
    }
    return {name: f"dataset.root={root}: {line}" for name, line in found.items() if line}


def _noted(config: DatasetConfig, seen: Path, machine: Machine) -> dict[str, str]:
    """What `_in_parts` tells: as it was noted of the same files and settings, or looked for."""
    parts = [folder.fingerprint(config, part, seen) for part in ("train", "test")]  # type: ignore[arg-type]
    memory, state = memory_at(seen / "findings.json"), repr([_VERSION, parts, config])
    state = hashlib.sha256(state.encode(errors="surrogateescape")).hexdigest()
    noted: dict[str, str] | None = memory.recall(config.root, state)
    if noted is None:
        noted = _in_parts(config, seen, machine)
        memory.note(config.root, state, noted)
        memory.save()
    return noted


def _in_parts(config: DatasetConfig, seen: Path, machine: Machine) -> dict[str, str]:
    """What the files of each part tell; nothing where they are too few to be split, which reading them says."""
    try:
        train, test = folder.read_of(config, "train"), folder.read_of(config, "test")
        _, validation = training_and_validation(train.labels, config)
    except UserError:
        return {}
    tested = test.labels[chosen_to_test(len(test), config)]
    # Of each part so many are looked at, evenly spread.
    files = [file for part in (train, test) for file in part.files[_spread(len(part))]]
    work = partial(_look, reading=reading(config), size=config.image_size)
    found = zip(files, in_threads(work, files, config.workers, machine, "look at images"), strict=True)
    looks = [(file.path, look) for file, look in found if look is not None]
    total = len(train) + len(test)
    of = f"of the {len(looks):,} images" + (f" that were looked at, of {total:,}," if len(looks) < total else "")
    return {
        "classes_lacking": _classes_lacking(config, {"validation": train.labels[validation], "test": tested}),
        "copies": _copies(config, train, test, seen),
        "constant": _constant(looks, of),
        "dark": _dark([look for _, look in looks], of),
    }


# --- names


def _class_folders(config: DatasetConfig, root: Path) -> list[Path]:
    parts = [root / "train", root / "test"] if folder.is_split(config) else [root]
    return [part / name for part in parts for name in folders_in(part)]


def _files_not_read(config: DatasetConfig, root: Path) -> str:
    """Images that are deeper than the classes' folders, or beside them."""
    classes = _class_folders(config, root)
    deeper = [path for place in classes for inner in folders_in(place) for path in images_below(place / inner)]
    beside = [
        os.path.join(place, name)
        for place in sorted({root, *(one.parent for one in classes)})
        for name in sorted(filter(is_image, os.listdir(place)))
    ]
    lost = [*deeper, *beside]
    if not lost:
        return ""
    return (
        f"{len(lost):,} image files are not read, which are not in a class folder itself but in one below it or beside "
        f"it; the first: {os.path.relpath(lost[0], root)}"
    )


def _other_suffixes(config: DatasetConfig, root: Path) -> str:
    counts: Counter[str] = Counter()
    for place in _class_folders(config, root):
        with os.scandir(place) as entries:
            counts.update(
                suffix_of(entry.name) or "without a suffix"
                for entry in entries
                if is_ours(entry.name) and not is_image(entry.name) and not entry.is_dir()
            )
    if not counts:
        return ""
    shown = _first((f"{count:,} {suffix}" for suffix, count in counts.most_common()), len(counts))
    return f"files in class folders are not read: {shown}; read are {' '.join(SUFFIXES)}"


def _folders_not_read(config: DatasetConfig, root: Path) -> str:
    """Folders of images beside train/ and test/."""
    if not folder.is_split(config):
        return ""
    others = [name for name in folders_in(root) if name not in ("train", "test")]
    counts = {name: sum(1 for _ in images_below(root / name)) for name in others}
    unread = [f"{name}/ ({count:,} images)" for name, count in counts.items() if count]
    if not unread:
        return ""
    return (
        f"not read: {_first(unread, len(unread))}; the validation part is split off train/ "
        f"(dataset.validation_fraction={config.validation_fraction:g})"
    )


def _classes_alike(config: DatasetConfig) -> str:
    by_folded: dict[str, list[str]] = {}
    for name in folder.class_names(config):
        by_folded.setdefault(name.casefold(), []).append(name)
    alike = [" and ".join(f"'{name}'" for name in names) for names in by_folded.values() if len(names) > 1]
    return f"the classes {_first(alike, len(alike))} differ by case alone" if alike else ""


def _first(words: Iterable[str], count: int) -> str:
    """The first of so many words, and how many more there are."""
    return ", ".join(list(words)[:_NAMED]) + (f" and {count - _NAMED:,} more" if count > _NAMED else "")


# --- what files hold


class Look(NamedTuple):
    """What one picture tells: one colour throughout, a channel for what is transparent, its brightest value, white."""

    constant: bool
    has_alpha: bool
    high: float
    white: float


def _classes_lacking(config: DatasetConfig, labels: dict[str, np.ndarray]) -> str:
    """The classes of which a part, given with its labels (N), has no image."""
    names = folder.class_names(config)
    lacking = {part: np.setdiff1d(np.arange(len(names)), has) for part, has in labels.items()}
    shown = [
        f"no {part} images of {_first((repr(names[label]) for label in of), len(of))}"
        for part, of in lacking.items()
        if len(of)
    ]
    return f"{' and '.join(shown)}: the accuracy there says nothing of them" if shown else ""


def _copies(config: DatasetConfig, train: Listing, test: Listing, seen: Path) -> str:
    """Files of the test part that are byte-equal to files of the train part."""
    trained, tested = folder.hashes_of(config, "train", seen), folder.hashes_of(config, "test", seen)
    originals = {trained[file.path]: file.path for file in train.files if trained[file.path] != UNREADABLE}
    copies = [file.path for file in test.files if tested[file.path] in originals]
    if not copies:
        return ""
    root = resolved(config.root)
    shown = " is ".join(os.path.relpath(path, root) for path in (copies[0], originals[tested[copies[0]]]))
    return (
        f"{len(copies):,} of {len(test):,} test files are byte-equal to training files: what is known by heart is "
        f"no accuracy; the first: {shown}"
    )


def _spread(count: int) -> np.ndarray:
    return np.unique(np.linspace(0, count - 1, min(count, _LOOKED_AT)).astype(np.int64))


def _look(file: ImageFile, reading: Reading, size: int) -> Look | None:
    """What a picture tells, or None where it cannot be read, which decoding will say."""
    try:
        pixels = fit(read_image(Path(file.path), reading), size)
        with Image.open(file.path) as image:
            has_alpha = image.mode.endswith(("A", "a")) or "transparency" in image.info
            high, white = float(pixels.max()), 255.0
            if is_deep(image):
                high, white = float(np.asarray(image).max()), white_of(image, reading.white_level)
        return Look(bool((pixels == pixels[:, :1, :1]).all()), has_alpha, high, white)
    except (UserError, OSError):
        return None


def _constant(looks: list[tuple[str, Look]], of: str) -> str:
    found = [(path, look) for path, look in looks if look.constant]
    if not found:
        return ""
    with_alpha = sum(look.has_alpha for _, look in found)
    dropped = f"; {with_alpha:,} of them have an alpha channel, which is not read" if with_alpha else ""
    return f"{len(found):,} {of} are of one colour throughout{dropped}; the first: {found[0][0]}"


def _dark(looks: list[Look], of: str) -> str:
    found = [look for look in looks if look.high <= _DARK * look.white and not look.constant]
    if not found or 2 * len(found) < len(looks):
        return ""
    brightest = max(found, key=lambda look: look.high / look.white)
    hint = ", as of files with fewer bits than they have room for"
    if brightest.white > 255 and brightest.high >= 1:
        bits = int(brightest.high).bit_length()
        hint = f"; dataset.white_level={2**bits - 1} reads {bits} bits"
    return (
        f"{len(found):,} {of} are dark: read as 0 to {brightest.white:g}, none of them has a value above "
        f"{brightest.high:g}{hint}"
    )
