"""CIFAR-10 (Krizhevsky 2009): 50,000 + 10,000 RGB images of ten classes, 32×32."""

from __future__ import annotations

from typing import Any

import torch

from pipeline.datasets import archives
from pipeline.datasets.spec import DatasetSpec, Part, PartName
from pipeline.host.files import resolved
from pipeline.host.machine import Machine
from pipeline.settings.config import DatasetConfig

_CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")


def _dataset() -> Any:
    from torchvision.datasets import CIFAR10  # seconds, which other data sets need not wait for

    return CIFAR10


def _prepare(config: DatasetConfig) -> None:
    from torchvision.datasets.utils import extract_archive

    root, dataset = resolved(config.root), _dataset()
    files = [*dataset.train_list, *dataset.test_list, (dataset.meta["filename"], dataset.meta["md5"])]

    def is_unpacked() -> bool:
        return all(archives.is_whole(root / dataset.base_folder / name, md5) for name, md5 in files)

    if is_unpacked():
        return
    archives.fetch(config, root, {dataset.filename: dataset.tgz_md5}, [dataset.url.rsplit("/", 1)[0]])
    with archives.locked(root):
        if not is_unpacked():
            extract_archive(str(root / dataset.filename), str(root))


def _read(config: DatasetConfig, part: PartName, machine: Machine) -> Part:
    dataset = _dataset()
    with machine.computing():
        # torchvision unpickles these files; they are the ones whose MD5 it states, or it refuses.
        whole = dataset(str(resolved(config.root)), train=part == "train", download=False)
        pixels = torch.from_numpy(whole.data).permute(0, 3, 1, 2).contiguous()
    return Part(pixels, torch.tensor(whole.targets))


DATASETS = (
    DatasetSpec(
        name="cifar10",
        class_names=lambda config: _CLASSES,
        prepare=_prepare,
        read=_read,
        fingerprint=lambda config, part, seen: f"cifar10 {_dataset().tgz_md5}",
        origin=lambda config: _dataset().url,
    ),
)
