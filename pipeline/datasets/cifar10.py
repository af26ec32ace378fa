"""CIFAR-10 (Krizhevsky 2009): 50,000 + 10,000 RGB images of ten classes, 32×32."""

from __future__ import annotations

import torch
from torchvision.datasets import CIFAR10
from torchvision.datasets.utils import check_integrity, extract_archive

from pipeline.config import DatasetConfig
from pipeline.datasets import archives
from pipeline.datasets.spec import DatasetSpec, Part, PartName
from pipeline.files import in_project

_CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")


def _prepare(config: DatasetConfig) -> None:
    root = in_project(config.root)
    if _is_unpacked(config):
        return
    mirror = CIFAR10.url.rsplit("/", 1)[0]
    archives.fetch(config, root, {CIFAR10.filename: CIFAR10.tgz_md5}, [mirror])
    with archives.locked(root):
        if not _is_unpacked(config):
            extract_archive(str(root / CIFAR10.filename), str(root))


def _is_unpacked(config: DatasetConfig) -> bool:
    folder = in_project(config.root) / CIFAR10.base_folder
    meta = (CIFAR10.meta["filename"], CIFAR10.meta["md5"])
    files = [*CIFAR10.train_list, *CIFAR10.test_list, meta]
    return all(check_integrity(str(folder / name), md5) for name, md5 in files)


def _read(config: DatasetConfig, part: PartName) -> Part:
    # torchvision unpickles these files; they are the ones whose MD5 it states, or it refuses.
    whole = CIFAR10(str(in_project(config.root)), train=part == "train", download=False)
    pixels = torch.from_numpy(whole.data).permute(0, 3, 1, 2).contiguous()
    return Part(pixels, torch.tensor(whole.targets))


DATASETS = (
    DatasetSpec(
        name="cifar10",
        class_names=lambda config: _CLASSES,
        prepare=_prepare,
        read=_read,
        fingerprint=lambda config, part: f"cifar10 {CIFAR10.tgz_md5}",
        origin=lambda config: CIFAR10.url,
    ),
)
