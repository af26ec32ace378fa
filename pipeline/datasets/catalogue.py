"""The data sets: one file each, found by their declaration `DATASETS`, and their split into parts.

The validation part is split off the training part, stratified and seeded by `dataset.split_seed`. The test
part is the same for every seed.
"""

from __future__ import annotations

import functools
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
from torch import Tensor

import pipeline.host.torchvision_operators  # noqa: F401  (before any module here imports torchvision)
from pipeline.datasets.preprocessing import Preprocessing, fit, from_array
from pipeline.datasets.spec import Check, DatasetInfo, DatasetSpec, Part, PartName
from pipeline.datasets.splitting import chosen_to_test, training_and_validation
from pipeline.datasets.unmade import Unmade
from pipeline.host.declared import modules_of
from pipeline.host.errors import UserError, suggestion
from pipeline.host.machine import UNSHARED, Machine
from pipeline.settings.config import DatasetConfig

_ROOM = "pipeline.datasets"
_OWN = "own"
# Bytes of a part's prepared images that are kept. More come of large images: there a batch is prepared in far less
# time than a network takes for it, and all of them would take gigabytes (docs/data.md).
_KEPT = 1_000_000_000
# Of the classes in their order so many are named.
_SHOWN = 12


@functools.cache
def registry() -> dict[str, DatasetSpec]:
    """Every declared data set by its name."""
    return {spec.name: spec for module in modules_of(_ROOM) for spec in getattr(module, "DATASETS", ())}


def loading_modules(config: DatasetConfig) -> list[str]:
    """The modules that load the data set which `config` names: the one that declares it, and the user's own."""
    spec = find(config)
    declaring = next(module.__name__ for module in modules_of(_ROOM) if spec in getattr(module, "DATASETS", ()))
    return [__name__, declaring, *([config.target.partition(":")[0]] if config.target is not None else [])]


def find(config: DatasetConfig) -> DatasetSpec:
    """The declared data set that `config` names.

    Raises:
        UserError: when there is none, or it has no files that could be streamed or skipped as `config` says.
    """
    datasets = registry()
    if config.target is not None:
        if config.name in datasets and not re.search(rf"[:.]{config.name}$", config.target):
            raise UserError(
                f"dataset.target={config.target}: dataset.name={config.name} is one of ours; allowed: dataset=own"
            )
        found = datasets[_OWN]
    elif config.kwargs:
        raise UserError(f"dataset.kwargs={config.kwargs}: allowed: with dataset.target")
    elif config.name not in datasets:
        raise UserError(
            f"dataset.name={config.name}: {suggestion(config.name, sorted(datasets))}; or "
            "dataset.target=package.module:name"
        )
    else:
        found = datasets[config.name]
    streams = found.has_files or config.target is not None
    for setting, value, has, rest in (
        ("loading", "stream", streams, "is read as a whole; allowed with it: auto, memory"),
        ("unreadable", "skip", found.has_files, "has no image files; allowed with it: refuse"),
    ):
        if getattr(config, setting) == value and not has:
            raise UserError(f"dataset.{setting}={value}: {config.name} {rest}")
    if config.white_level is not None and not streams:
        raise UserError(f"dataset.white_level={config.white_level:g}: {config.name} has no image files; allowed: null")
    return found


def info(config: DatasetConfig) -> DatasetInfo:
    """Channels (as many as `dataset.mean` has, where images are prepared), class names and image size."""
    spec = find(config)
    channels, *sides = spec.tensors(config) or [len(config.mean), config.image_size]
    return DatasetInfo(channels, spec.class_names(config), image_size=sides[0])


def class_order(config: DatasetConfig) -> str | None:
    """The classes in their order, where it is that of text and another than numbers in the names suggest."""
    names = find(config).class_names(config)
    if not find(config).has_files or list(names) == sorted(names, key=_by_numbers):
        return None
    return ", ".join(names[:_SHOWN]) + (", …" if len(names) > _SHOWN else "")


def _by_numbers(name: str) -> list[tuple[str, int]]:
    return [(text, int(number or -1)) for text, number in re.findall(r"([^0-9]*)([0-9]*)", name)]


def preprocessing(config: DatasetConfig) -> Preprocessing | None:
    """What `loader.evaluation_batches` does to the images of this data set, for whoever uses the model elsewhere.

    None where the user's own code does it.
    """
    if find(config).tensors(config) is not None:
        return None
    mean, std = tuple(map(float, config.mean)), tuple(map(float, config.std))
    return Preprocessing(
        config.image_size,
        len(mean),
        mean,
        std,
        find(config).class_names(config),
        max_image_megapixels=config.max_image_megapixels,
        white_level=config.white_level,
    )


def _check_nothing(targets: Tensor, name: PartName, class_names: tuple[str, ...], told: str) -> None: ...


def load_training(
    config: DatasetConfig, machine: Machine = UNSHARED, check: Check = _check_nothing
) -> tuple[Part, Part]:
    """The training and the validation part, read and later decoded on `machine` while nobody measures.

    Raises:
        UserError: when the images or their labels cannot be, `check` refuses these, or a class has too few images to
            appear in both.
    """
    part = _load(config, "train", machine, check)
    training, validation = training_and_validation(part.labels.numpy(), config)
    return part.select(training), part.select(validation)


def load_test(config: DatasetConfig, machine: Machine = UNSHARED, check: Check = _check_nothing) -> Part:
    """The test part, or `max_test_samples` of it, the same for every seed; of `machine` as above.

    Raises:
        UserError: when the images or their labels cannot be, or `check` refuses these.
    """
    part = _load(config, "test", machine, check)
    chosen = chosen_to_test(len(part), config)
    return part if len(chosen) == len(part) else part.select(chosen)


def fingerprint(config: DatasetConfig, part: PartName, seen: Path) -> str:
    """What identifies the content of a part in artifact keys; as it was first seen since `look_again`.

    `seen`: a folder for what is remembered of files.
    """
    return find(config).fingerprint(config, part, seen)


def inspect(config: DatasetConfig, seen: Path, machine: Machine = UNSHARED) -> dict[str, str]:
    """What is odd about the files of a data set: a line each, by its name. It ends no run, and may spoil one.

    Args:
        seen: a folder for what was found, so that the same files are read once for it.
    """
    return find(config).inspect(config, seen, machine)


def look_again() -> None:
    """Begin another run: what is in folders of files is looked at anew, once, and has to stay as it is."""
    for spec in registry().values():
        spec.look_again()


def _load(config: DatasetConfig, name: PartName, machine: Machine, check: Check) -> Part:
    spec = find(config)
    spec.prepare(config)
    part = spec.read(config, name, machine)
    told, class_names = f"dataset={config.name}: the {name} part", spec.class_names(config)
    _check_count(part, told, len(class_names))
    check(part.labels, name, class_names, told)
    return replace(prepared(part, config), machine=machine)


def prepared(part: Part, config: DatasetConfig) -> Part:
    """The part with the channels and the size that `config` says; as it is, where it has them."""
    channels, size = len(config.mean), config.image_size
    if not isinstance(part.pixels, Tensor) or tuple(part.pixels.shape[1:]) == (channels, size, size):
        return part
    make = functools.partial(_prepare, channels=channels, size=size)
    return replace(part, pixels=Unmade(part.pixels.numpy(), make, (channels, size, size), config.workers, _KEPT))


def _prepare(pixels: np.ndarray, channels: int, size: int) -> np.ndarray:
    return fit(from_array(pixels, channels), size)


def _check_count(part: Part, told: str, classes: int) -> None:
    """Refuse a part without images, or with another number of labels.

    Raises:
        UserError: naming the data set, the part and what is allowed.
    """
    if len(part) != part.pixels.shape[0]:
        raise UserError(
            f"{told} has {part.pixels.shape[0]:,} images and {len(part):,} labels; allowed: one label an image"
        )
    if len(part) == 0:
        raise UserError(f"{told} has no images; allowed: images of each of its {classes} classes")
