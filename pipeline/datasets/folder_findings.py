"""What is odd about a folder of images, and might spoil a run without a word: a line each, by its name.

What its names tell is looked for in every run. What the files hold is looked for once, in some of them, and noted.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from collections import Counter
from pathlib import Path

import numpy as np

from pipeline.datasets import folder_listing
from pipeline.datasets.folder_listing import Listing
from pipeline.datasets.folder_names import SUFFIXES, folders_in, images_below, is_image, is_ours, suffix_of
from pipeline.datasets.looking import find_copies, look_at
from pipeline.datasets.spec import PartName
from pipeline.datasets.splitting import chosen_to_test, training_and_validation
from pipeline.host.errors import UserError
from pipeline.host.files import in_project, write_and_rename
from pipeline.host.machine import Machine
from pipeline.settings.config import DatasetConfig

# Raise it when what is looked for in the files changes.
_VERSION = 1
# Of each kind of thing, so many are named.
_NAMED = 5


def inspect(config: DatasetConfig, seen: Path, machine: Machine) -> dict[str, str]:
    """Every line by its name; those that tell of the files' content are kept in the folder `seen`.

    Raises:
        UserError: when there is no such folder.
    """
    root = in_project(config.root)
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
    parts = [folder_listing.fingerprint(config, part, seen) for part in ("train", "test")]  # type: ignore[arg-type]
    settings = {
        spec.name: getattr(config, spec.name)
        for spec in dataclasses.fields(config)
        if spec.metadata.get("in_key", True)
    }
    digest = hashlib.sha256(json.dumps([_VERSION, parts, settings]).encode()).hexdigest()
    path = seen / f"findings-{digest[:16]}.json"
    try:
        noted: dict[str, str] = json.loads(path.read_text())
    except (OSError, ValueError):  # not there yet, or damaged
        noted = _in_parts(config, seen, machine)
        seen.mkdir(parents=True, exist_ok=True)
        with write_and_rename(path) as temporary:
            temporary.write_text(json.dumps(noted, indent=1))
    return noted


def _in_parts(config: DatasetConfig, seen: Path, machine: Machine) -> dict[str, str]:
    """What the files of each part tell; nothing where they are too few to be split, which reading them says."""
    try:
        train, test = folder_listing.read_of(config, "train"), folder_listing.read_of(config, "test")
        _, validation = training_and_validation(train.labels, config)
    except UserError:
        return {}
    tested = test.labels[chosen_to_test(len(test), config)]
    lacking = _classes_lacking(config, {"validation": train.labels[validation], "test": tested})
    copies = find_copies(
        _hashes(config, "train", train, seen), _hashes(config, "test", test, seen), in_project(config.root)
    )
    return {"classes_lacking": lacking, "copies": copies, **look_at(train, test, config, machine)}


def _hashes(config: DatasetConfig, part: PartName, listing: Listing, seen: Path) -> dict[str, str]:
    """The hashes of the files of a part, by path."""
    known = folder_listing.hashes_of(config, part, seen)
    return {file.path: known[file.path] for file in listing.files}


def _class_folders(config: DatasetConfig, root: Path) -> list[Path]:
    parts = [root / "train", root / "test"] if folder_listing.is_split(config) else [root]
    return [part / name for part in parts for name in folders_in(part)]


def _files_not_read(config: DatasetConfig, root: Path) -> str:
    """Images that are deeper than the classes' folders, or beside them."""
    classes = _class_folders(config, root)
    deeper = [path for folder in classes for inner in folders_in(folder) for path in images_below(folder / inner)]
    beside = [
        os.path.join(place, name)
        for place in sorted({root, *(folder.parent for folder in classes)})
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
    for folder in _class_folders(config, root):
        with os.scandir(folder) as entries:
            counts.update(
                suffix_of(entry.name) or "without a suffix"
                for entry in entries
                if is_ours(entry.name) and not is_image(entry.name) and not entry.is_dir()
            )
    if not counts:
        return ""
    shown = ", ".join(f"{count:,} {suffix}" for suffix, count in counts.most_common(_NAMED))
    return f"files in class folders are not read: {shown}{_more(len(counts))}; read are {' '.join(SUFFIXES)}"


def _folders_not_read(config: DatasetConfig, root: Path) -> str:
    """Folders of images beside train/ and test/."""
    if not folder_listing.is_split(config):
        return ""
    others = [name for name in folders_in(root) if name not in ("train", "test")]
    counts = {name: sum(1 for _ in images_below(root / name)) for name in others}
    unread = [f"{name}/ ({count:,} images)" for name, count in counts.items() if count]
    if not unread:
        return ""
    return (
        f"not read: {', '.join(unread[:_NAMED])}{_more(len(unread))}; the validation part is split off train/ "
        f"(dataset.validation_fraction={config.validation_fraction:g})"
    )


def _classes_alike(config: DatasetConfig) -> str:
    by_folded: dict[str, list[str]] = {}
    for name in folder_listing.class_names(config):
        by_folded.setdefault(name.casefold(), []).append(name)
    alike = [" and ".join(f"'{name}'" for name in names) for names in by_folded.values() if len(names) > 1]
    if not alike:
        return ""
    return f"the classes {', '.join(alike[:_NAMED])}{_more(len(alike))} differ by case alone"


def _classes_lacking(config: DatasetConfig, labels: dict[str, np.ndarray]) -> str:
    """The classes of which a part, given with its labels (N), has no image."""
    names = folder_listing.class_names(config)
    lacking = {part: np.setdiff1d(np.arange(len(names)), has) for part, has in labels.items()}
    shown = [
        f"no {part} images of {', '.join(repr(names[label]) for label in of[:_NAMED])}{_more(len(of))}"
        for part, of in lacking.items()
        if len(of)
    ]
    return f"{' and '.join(shown)}: the accuracy there says nothing of them" if shown else ""


def _more(count: int) -> str:
    return f" and {count - _NAMED:,} more" if count > _NAMED else ""
