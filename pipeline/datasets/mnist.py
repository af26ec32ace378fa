"""MNIST (LeCun et al. 1998) and Fashion-MNIST (Xiao et al. 2017): 60,000 + 10,000 grey images, 28×28."""

from __future__ import annotations

import gzip
import os
import shutil
import struct
import zlib
from pathlib import Path
from typing import Any

from pipeline.datasets import archives
from pipeline.datasets.spec import DatasetSpec, Part, PartName
from pipeline.host.errors import UserError
from pipeline.host.files import in_project, write_and_rename
from pipeline.host.machine import Machine
from pipeline.settings.config import DatasetConfig

_IMAGES: dict[PartName, str] = {"train": "train-images-idx3-ubyte", "test": "t10k-images-idx3-ubyte"}
# Of a file of images: a magic number, the count, height and width, 4 bytes each.
_HEADER_BYTES = 16


def _unpack(archive: Path, target: Path) -> None:
    """Unpack a .gz, unless its content is there already: its last 8 bytes are CRC-32 and length (RFC 1952)."""
    with archive.open("rb") as stream:
        stream.seek(-8, os.SEEK_END)
        expected = struct.unpack("<II", stream.read(8))
    if target.is_file() and target.stat().st_size == expected[1] and zlib.crc32(target.read_bytes()) == expected[0]:
        return
    with write_and_rename(target) as temporary, gzip.open(archive) as source, temporary.open("wb") as unpacked:
        shutil.copyfileobj(source, unpacked)


def _spec(name: str, class_name: str) -> DatasetSpec:
    def dataset() -> Any:
        import torchvision.datasets  # seconds, which other data sets need not wait for

        return getattr(torchvision.datasets, class_name)

    def folder_of(config: DatasetConfig) -> Path:
        return in_project(config.root) / class_name / "raw"

    def prepare(config: DatasetConfig) -> None:
        folder, resources = folder_of(config), dict(dataset().resources)
        archives.fetch(config, folder, resources, dataset().mirrors)
        with archives.locked(folder):
            for archive in resources:
                _unpack(folder / archive, folder / archive.removesuffix(".gz"))

    def read(config: DatasetConfig, part: PartName, machine: Machine) -> Part:
        images = folder_of(config) / _IMAGES[part]
        if images.stat().st_size <= _HEADER_BYTES:
            raise UserError(f"dataset={config.name}: the {part} part has no images: {images}; allowed: at least one")
        try:
            with machine.computing():
                whole = dataset()(str(in_project(config.root)), train=part == "train", download=False)
        except (AssertionError, RuntimeError, ValueError, LookupError, OSError) as error:
            raise UserError(
                f"dataset={config.name}: an unpacked file in {folder_of(config)} is damaged ({type(error).__name__}: "
                f"{error}): remove the folder and run the command again"
            ) from error
        return Part(whole.data.unsqueeze(1), whole.targets.long())

    return DatasetSpec(
        name=name,
        class_names=lambda config: tuple(dataset().classes),
        prepare=prepare,
        read=read,
        fingerprint=lambda config, part, seen: f"{name} {sorted(md5 for _, md5 in dataset().resources)}",
        origin=lambda config: dataset().mirrors[-1],
    )


DATASETS = (
    _spec("mnist", "MNIST"),
    _spec("fashion_mnist", "FashionMNIST"),
)
