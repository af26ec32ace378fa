"""The user's own images: `train/<class>/*` and `test/<class>/*`, or `<class>/*` alone, which is split.

Every image is decoded once, in parallel, to a square of `dataset.image_size` (shorter side scaled,
middle cropped), after a check that all of them fit the memory bound.
"""

from __future__ import annotations

import hashlib
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch

from pipeline import terminal
from pipeline.config import DatasetConfig
from pipeline.datasets.spec import DatasetSpec, Part, PartName
from pipeline.datasets.splitting import split_indices
from pipeline.errors import UserError
from pipeline.files import in_project
from pipeline.preprocessing import fit_8_bits, read_image

_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".webp", ".tif", ".tiff", ".gif", ".ppm", ".pgm")
_LAYOUT = "train/<class>/* and test/<class>/*, or <class>/* alone"


# What conf/dataset/image_folder.yaml says: there is no folder to assume.
_NO_ROOT = ""


def _is_split(config: DatasetConfig) -> bool:
    """Whether the folder brings its own train and test parts."""
    if config.root == _NO_ROOT:
        raise UserError(f"dataset.root must be set: allowed: a folder with {_LAYOUT}")
    root = in_project(config.root)
    return (root / "train").is_dir() and (root / "test").is_dir()


def _folder(config: DatasetConfig, part: PartName) -> Path:
    root = in_project(config.root)
    return root / part if _is_split(config) else root


def _class_names(config: DatasetConfig) -> tuple[str, ...]:
    folder = _folder(config, "train")
    if not folder.is_dir():
        raise UserError(f"dataset.root={folder}: no such folder; allowed: a folder with {_LAYOUT}")
    names = tuple(sorted(path.name for path in folder.iterdir() if path.is_dir() and path.name[0] != "."))
    if len(names) < 2:
        raise UserError(f"dataset.root={folder}: {len(names)} class folders found; allowed: at least 2, as {_LAYOUT}")
    return names


def _files(config: DatasetConfig, part: PartName) -> list[tuple[Path, int]]:
    """Every image file of a part with its label, in a fixed order."""
    names, folder = _class_names(config), _folder(config, part)
    found = sorted(path.name for path in folder.iterdir() if path.is_dir() and path.name[0] != ".")
    strays = [name for name in found if name not in names]
    if strays:
        raise UserError(f"dataset.root={folder}: class '{strays[0]}' is in {part}/ but not in train/")
    files = [
        (path, label)
        for label, name in enumerate(names)
        for path in sorted((folder / name).glob("*"))
        if path.suffix.lower() in _SUFFIXES
    ]
    empty = sorted(set(range(len(names))) - {label for _, label in files})
    if files and part == "train" and empty:
        raise UserError(f"dataset.root={folder}: class '{names[empty[0]]}' has no images; allowed: some in each class")
    if not files:
        raise UserError(f"dataset.root={folder}: no images; allowed: {_LAYOUT}, files {' '.join(_SUFFIXES)}")
    return files


def _prepare(config: DatasetConfig) -> None:
    parts: tuple[PartName, ...] = ("train", "test") if _is_split(config) else ("train",)
    count = sum(len(_files(config, part)) for part in parts)
    needed_gb = count * len(config.mean) * config.image_size**2 / 1e9
    if needed_gb > config.max_memory_gb:
        raise UserError(
            f"dataset.max_memory_gb={config.max_memory_gb:g}: {count} images of {config.image_size} px need "
            f"{needed_gb:.2f} GB; allowed: more memory, or a smaller dataset.image_size"
        )


def _read(config: DatasetConfig, part: PartName) -> Part:
    files = _files(config, part)
    if not _is_split(config):
        labels = np.array([label for _, label in files])
        key = f"dataset.test_fraction={config.test_fraction}"
        training, test = split_indices(labels, round(len(files) * config.test_fraction), seed=0, key=key)
        files = [files[index] for index in (training if part == "train" else test)]
    return _decode(files, config, f"decode {part}")


def _decode(files: list[tuple[Path, int]], config: DatasetConfig, description: str) -> Part:
    """Decode every file, in parallel, into one tensor of its final size."""
    channels, size = len(config.mean), config.image_size
    pixels = np.empty((len(files), channels, size, size), dtype=np.uint8)

    def decode(index: int) -> None:
        try:
            pixels[index] = fit_8_bits(read_image(files[index][0], channels), size)
        except UserError as error:
            raise UserError(f"dataset.root: {error}") from error

    workers = config.workers or min(32, os.cpu_count() or 1)
    with ThreadPoolExecutor(workers) as pool, terminal.bar(description, len(files)) as progress:
        try:
            for _ in pool.map(decode, range(len(files))):
                progress.update(1)
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    return Part(torch.from_numpy(pixels), torch.tensor([label for _, label in files]))


def _fingerprint(config: DatasetConfig, part: PartName) -> str:
    """A hash of the classes and of every file's place, size and time; a copy that keeps times has the same."""
    folder = _folder(config, part)
    lines = list(_class_names(config))
    for path, _ in _files(config, part):
        try:
            status = path.stat()
        except OSError as error:
            raise UserError(f"dataset.root: {path} cannot be read: {error.strerror}") from error
        lines.append(f"{path.relative_to(folder)} {status.st_size} {status.st_mtime_ns}")
    return hashlib.sha256("\n".join(lines).encode(errors="surrogateescape")).hexdigest()


DATASETS = (
    DatasetSpec(
        name="image_folder",
        class_names=_class_names,
        prepare=_prepare,
        read=_read,
        fingerprint=_fingerprint,
        origin=lambda config: str(in_project(config.root)),
        decodes_to_size=True,
    ),
)
