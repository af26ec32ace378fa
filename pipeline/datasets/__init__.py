"""The data sets: one file each, found by their declaration `DATASETS`, and their split into parts.

The validation part is split off the training part, stratified and seeded by `dataset.split_seed`. The test
part is the same for every seed.
"""

from __future__ import annotations

import functools
import importlib
import pkgutil
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import numpy as np

import pipeline.torchvision_operators  # noqa: F401  (before any module here imports torchvision)
from pipeline.config import DatasetConfig
from pipeline.datasets.arrays import prepared
from pipeline.datasets.labels import check_labels
from pipeline.datasets.spec import DatasetInfo, DatasetSpec, Part, PartName
from pipeline.datasets.splitting import split_stratified, take_stratified
from pipeline.errors import UserError, suggestion
from pipeline.machine import UNSHARED, Machine
from pipeline.preprocessing import Preprocessing


@functools.cache
def registry() -> dict[str, DatasetSpec]:
    """Every declared data set by its name."""
    return {spec.name: spec for module in _modules() for spec in getattr(module, "DATASETS", ())}


def module_of(config: DatasetConfig) -> str:
    """The module that declares the data set which `config` names."""
    spec = find(config)
    return next(module.__name__ for module in _modules() if spec in getattr(module, "DATASETS", ()))


@functools.cache
def _modules() -> tuple[ModuleType, ...]:
    return tuple(importlib.import_module(f"{__name__}.{found.name}") for found in pkgutil.iter_modules(__path__))


def find(config: DatasetConfig) -> DatasetSpec:
    """The declared data set that `config` names.

    Raises:
        UserError: when there is none, or it has no files that could be streamed or skipped as `config` says.
    """
    datasets = registry()
    if config.name not in datasets:
        raise UserError(f"dataset.name={config.name}: {suggestion(config.name, sorted(datasets))}")
    found = datasets[config.name]
    if config.loading == "stream" and not found.has_files:
        raise UserError(f"dataset.loading=stream: {config.name} is read as a whole; allowed with it: auto, memory")
    if config.unreadable == "skip" and not found.has_files:
        raise UserError(f"dataset.unreadable=skip: {config.name} has no image files; allowed with it: refuse")
    return found


def info(config: DatasetConfig) -> DatasetInfo:
    """Channels (as many as `dataset.mean` has) and class names."""
    return DatasetInfo(len(config.mean), find(config).class_names(config))


def preprocessing(config: DatasetConfig) -> Preprocessing:
    """What `loader.evaluation_batches` does to the images of this data set, for whoever uses the model elsewhere."""
    mean, std = tuple(map(float, config.mean)), tuple(map(float, config.std))
    return Preprocessing(config.image_size, len(mean), mean, std, find(config).class_names(config))


def load_training(config: DatasetConfig, machine: Machine = UNSHARED) -> tuple[Part, Part]:
    """The training and the validation part, read and later decoded on `machine` while nobody measures.

    Raises:
        UserError: when the images or their labels cannot be, or a class has too few images to appear in both.
    """
    part = _load(config, "train", machine)
    if config.max_train_samples is not None and config.max_train_samples < len(part):
        key = f"dataset.max_train_samples={config.max_train_samples}"
        part = take_stratified(part, config.max_train_samples, config.split_seed, key)
    held_out = round(len(part) * config.validation_fraction)
    key = f"dataset.validation_fraction={config.validation_fraction}"
    if config.max_train_samples is not None:
        key += f" of dataset.max_train_samples={config.max_train_samples}"
    return split_stratified(part, held_out, config.split_seed, key)


def load_test(config: DatasetConfig, machine: Machine = UNSHARED) -> Part:
    """The test part, or `max_test_samples` of it, the same for every seed; of `machine` as above.

    Raises:
        UserError: when the images or their labels cannot be.
    """
    part = _load(config, "test", machine)
    if config.max_test_samples is not None and config.max_test_samples < len(part):
        chosen = np.random.default_rng(0).permutation(len(part))[: config.max_test_samples]
        part = part.select(np.sort(chosen))
    return part


def fingerprint(config: DatasetConfig, part: PartName, seen: Path) -> str:
    """What identifies the content of a part in artifact keys; as it was first seen since `look_again`.

    `seen`: a folder for what is remembered of files.
    """
    return find(config).fingerprint(config, part, seen)


def look_again() -> None:
    """Begin another run: what is in folders of files is looked at anew, once, and has to stay as it is."""
    for spec in registry().values():
        spec.look_again()


def _load(config: DatasetConfig, name: PartName, machine: Machine) -> Part:
    spec = find(config)
    spec.prepare(config)
    part = spec.read(config, name, machine)
    check_labels(part, config.name, name, spec.class_names(config))
    return replace(prepared(part, config), machine=machine)
