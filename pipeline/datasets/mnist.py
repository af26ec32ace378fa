"""MNIST (LeCun et al. 1998) and Fashion-MNIST (Xiao et al. 2017): 60,000 + 10,000 grey images, 28×28."""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pipeline.datasets import archives
from pipeline.datasets.spec import DatasetSpec, Part, PartName
from pipeline.host.files import resolved
from pipeline.host.machine import Machine
from pipeline.settings.config import DatasetConfig

_BEGINNINGS: dict[PartName, str] = {"train": "train", "test": "t10k"}


def _spec(name: str, class_name: str) -> DatasetSpec:
    def dataset() -> Any:
        import torchvision.datasets  # seconds, which other data sets need not wait for

        return getattr(torchvision.datasets, class_name)

    def folder_of(config: DatasetConfig) -> Path:
        return resolved(config.root) / class_name / "raw"

    def prepare(config: DatasetConfig) -> None:
        archives.fetch(config, folder_of(config), dict(dataset().resources), dataset().mirrors)

    def read(config: DatasetConfig, part: PartName, machine: Machine) -> Part:
        start = folder_of(config) / _BEGINNINGS[part]
        with machine.computing():
            images, labels = (
                gzip.decompress(Path(f"{start}-{kind}-ubyte.gz").read_bytes())
                for kind in ("images-idx3", "labels-idx1")
            )
        # Behind a header: a magic number, the count and, of images, height and width, 4 bytes each.
        pixels = np.frombuffer(images, np.uint8, offset=16).reshape(-1, 1, 28, 28)
        return Part(torch.tensor(pixels), torch.tensor(np.frombuffer(labels, np.uint8, offset=8), dtype=torch.int64))

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
