"""The user's own data set, by its import path: `dataset.target` (docs/own-network.md).

Images of 8 bits (PIL's, arrays, tensors) are read once and prepared as those of other data sets are. Float tensors are
what the user's own transforms make, and are taken as they are. Either way the content, images and labels, is the key's:
a process reads it once, as it reads the user's source once.
"""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from pipeline.datasets.decoding import in_threads, reading, storage
from pipeline.datasets.own_items import LABELS, mark_of, read_item
from pipeline.datasets.own_parts import KEY, parts_of
from pipeline.datasets.own_tensors import OwnTensors, seeded
from pipeline.datasets.pictures import Reading, picture_of
from pipeline.datasets.preprocessing import fit
from pipeline.datasets.spec import DatasetSpec, Part, PartName
from pipeline.datasets.splitting import held_out_to_test
from pipeline.datasets.unmade import Unmade
from pipeline.host import terminal
from pipeline.host.errors import UserError
from pipeline.host.machine import UNSHARED, Machine
from pipeline.settings.config import DatasetConfig

# So many images are read twice, to see whether they are the same each time.
_TWICE = 8


@dataclass(frozen=True, eq=False)
class _Content:
    """A part as it was read.

    Attributes:
        source: the user's data set.
        labels: as they are in it, whole numbers or text (N).
        marks: a hash of each image as it is in it (N).
        size: (C, H, W) of each image where they are float tensors; None: they are of 8 bits.
        pixels: the prepared images, uint8 (N, C, S, S), where they are kept in memory.
    """

    source: Any
    labels: list[int] | list[str]
    marks: list[bytes]
    size: tuple[int, ...] | None
    pixels: np.ndarray | None

    @functools.cached_property
    def digest(self) -> str:
        whole = hashlib.sha256(b"".join(self.marks))
        whole.update(json.dumps(self.labels).encode())
        return whole.hexdigest()


# --- a part


# What this process has read, of one data set in one size.
_read_before: dict[str, dict[str, _Content]] = {}


def _content(config: DatasetConfig, part: PartName, machine: Machine = UNSHARED) -> _Content:
    """A part, read once in this process; of a whole that is yet to be split, the whole."""
    parts = parts_of(config)
    name = part if part in parts else "train"
    settings = (config.image_size, len(config.mean), config.white_level, config.loading, config.max_memory_gb)
    key = json.dumps([config.target, config.kwargs, *settings], sort_keys=True)
    if key not in _read_before:
        _read_before.clear()
        _read_before[key] = {}
    if name not in _read_before[key]:
        _read_before[key][name] = _read_all(config, name, parts[name], machine)
    return _read_before[key][name]


def _read_all(config: DatasetConfig, part: str, source: Any, machine: Machine) -> _Content:
    what = functools.partial("dataset.target={}: image {} of the {} part".format, config.target)
    first, _ = read_item(source, 0, what(0, part))
    size = tuple(first.shape) if isinstance(first, Tensor) else None
    pixels: np.ndarray | None = None
    _refuse_changing(config, source, part, size is not None)
    how, edge = reading(config), config.image_size
    if size is None:
        count = sum(map(len, parts_of(config).values()))
        streamed, line = storage(config, config.name, count, config.workers or 1)
        _say_once(line)
        if not streamed:
            pixels = np.empty((len(source), len(config.mean), edge, edge), dtype=np.uint8)

    def read(index: int) -> tuple[bytes, int | str]:
        image, label = read_item(source, index, what(index, part))
        shape = tuple(image.shape) if isinstance(image, Tensor) else None
        if shape != size:
            raise UserError(f"{what(index, part)} is {_words(shape)}, and image 0 {_words(size)}; allowed: all alike")
        if pixels is not None:
            assert isinstance(image, Image.Image)
            pixels[index] = _prepare(image, how, edge, what(index, part))
        return mark_of(image), label

    # Random transforms draw in the order of the images, hence by one thread.
    workers = config.workers or 1 if size is None else 1
    with seeded():
        marks, labels = zip(*in_threads(read, range(len(source)), workers, machine, f"read {part}"), strict=True)
    if len({isinstance(label, str) for label in labels}) > 1:
        raise UserError(
            f"{KEY}={config.target}: some labels of the {part} part are text; allowed: all of them, or none"
        )
    return _Content(source, list(labels), list(marks), size, pixels)


def _refuse_changing(config: DatasetConfig, source: Any, part: str, tensors: bool) -> None:
    """Refuse images that are others each time: of 8 bits at all, as float tensors where the seeds are the same."""
    what = f"{KEY}={config.target}: an image of the {part} part"

    def look() -> list[bytes]:
        return [mark_of(read_item(source, index, what)[0]) for index in range(min(_TWICE, len(source)))]

    with seeded():
        before = look()
        if tensors:
            with seeded():
                after = look()
        else:
            after = look()
    if before != after:
        allowed = (
            "transforms that draw from random, numpy.random or torch alone"
            if tensors
            else "images as they are, which dataset.crop_padding and dataset.horizontal_flip augment, or float tensors"
        )
        raise UserError(f"{what} is another each time{', by the same seeds' if tensors else ''}; allowed: {allowed}")


def _prepare(image: Image.Image, how: Reading, edge: int, what: str) -> np.ndarray:
    try:
        return fit(picture_of(image, how), edge)
    except ValueError as error:  # of values beyond white
        raise UserError(f"{what}: {error}") from error


def _words(size: tuple[int, ...] | None) -> str:
    return "of 8 bits" if size is None else f"a float tensor {size}"


@functools.cache
def _say_once(line: str) -> None:
    terminal.say(line)


# --- what the catalogue asks for


def _class_names(config: DatasetConfig) -> tuple[str, ...]:
    source = parts_of(config)["train"]
    while source is not None:
        for names in (getattr(source, "classes", None), getattr(source, "class_names", None), _features(source)):
            if isinstance(names, list | tuple) and names:
                return tuple(", ".join(name) if isinstance(name, list | tuple) else str(name) for name in names)
        source = getattr(source, "dataset", None)  # as torch.utils.data.Subset has it
    labels = _content(config, "train").labels
    if isinstance(labels[0], str):
        return tuple(sorted(set(map(str, labels))))
    return tuple(map(str, range(max(map(int, labels)) + 1)))


def _features(source: Any) -> Any:
    """The class names of Hugging Face's."""
    features = getattr(source, "features", None)
    if not isinstance(features, Mapping):
        return None
    return next((getattr(features[name], "names", None) for name in LABELS if name in features), None)


def _labels(config: DatasetConfig, part: PartName) -> np.ndarray:
    given, trained = _content(config, part).labels, _content(config, "train").labels
    if isinstance(given[0], str) is not isinstance(trained[0], str):
        raise UserError(
            f"{KEY}={config.target}: the labels of one part alone are text; allowed: those of both, or none"
        )
    if not isinstance(given[0], str):
        return np.array(given, dtype=np.int64)
    places = {name: place for place, name in enumerate(_class_names(config))}
    unknown = next((label for label in given if label not in places), None)
    if unknown is not None:
        raise UserError(
            f"{KEY}={config.target}: the {part} part has the label '{unknown}'; allowed: {', '.join(places)}"
        )
    return np.array([places[str(label)] for label in given], dtype=np.int64)


def _read(config: DatasetConfig, part: PartName, machine: Machine) -> Part:
    content, labels = _content(config, part, machine), _labels(config, part)
    what = functools.partial("dataset.target={}: image {} of the {} part".format, config.target)
    size, how = config.image_size, reading(config)

    def again(index: int) -> Image.Image | Tensor:
        return read_item(content.source, int(index), what(int(index), part))[0]

    def picture(index: int) -> np.ndarray:
        image = again(index)
        if isinstance(image, Tensor) or mark_of(image) != content.marks[index]:
            raise UserError(f"{what(int(index), part)} has changed since the run began; started again, it is read anew")
        return _prepare(image, how, size, what(int(index), part))

    def tensor(index: int) -> Tensor:
        image = again(index)
        if not isinstance(image, Tensor) or tuple(image.shape) != content.size:
            raise UserError(f"{what(int(index), part)} has another shape than when the run began")
        return image

    images: Tensor | Unmade | OwnTensors
    places = np.arange(len(labels))
    if content.size is not None:
        images = OwnTensors(places, tensor, content.size, config.workers)
    elif content.pixels is not None:
        images = torch.from_numpy(content.pixels)
    else:
        images = Unmade(places, picture, (len(config.mean), size, size), config.workers or 1)
    whole = Part(images, torch.from_numpy(labels))
    return whole if "test" in parts_of(config) else whole.select(held_out_to_test(labels, config, part))


def _fingerprint(config: DatasetConfig, part: PartName, seen: Path) -> str:
    content = _content(config, part)
    # What transforms make may differ where none of the images that were looked at does.
    of_transforms = [] if content.size is None else [config.target, config.kwargs]
    split = part if "test" in parts_of(config) else "held out"
    # They say how many outputs there are, and which number a label that is text becomes.
    named = [split, _class_names(config), content.digest, *of_transforms]
    return hashlib.sha256(json.dumps(named, sort_keys=True).encode()).hexdigest()


def _tensors(config: DatasetConfig) -> tuple[int, ...] | None:
    size = _content(config, "train").size
    if size is None:
        return None
    shown = " × ".join(map(str, size))
    if size[1] != size[2]:
        raise UserError(f"{KEY}={config.target}: its images are float tensors of {shown}; allowed: as high as wide")
    if size[1] != config.image_size:
        raise UserError(
            f"dataset.image_size={config.image_size}: the images of {config.target} are float tensors of {shown}, "
            f"which are taken as they are; allowed: {size[1]}"
        )
    for setting in ("crop_padding", "horizontal_flip"):
        if value := getattr(config, setting):
            raise UserError(
                f"dataset.{setting}={value}: the images of {config.target} are float tensors, which its own transforms "
                "augment; allowed: 0 and false"
            )
    return size


def _inspect(config: DatasetConfig, seen: Path, machine: Machine) -> dict[str, str]:
    size = _tensors(config)
    if size is None:
        return {}
    line = (
        f"dataset.target={config.target}: its images are float tensors of {' × '.join(map(str, size))}, taken as they "
        "are: size, mean, std and augmentation (of the validation part too) are its own, and do not travel with an "
        "exported model"
    )
    return {"own_transforms": line}


DATASETS = (
    DatasetSpec(
        name="own",
        class_names=_class_names,
        prepare=lambda config: None,
        read=_read,
        fingerprint=_fingerprint,
        origin=lambda config: str(config.target),
        inspect=_inspect,
        tensors=_tensors,
    ),
)
