"""scikit-learn's bundled 1,797 handwritten digits (UCI, 8×8, 17 grey levels): real, and no download."""

from __future__ import annotations

import numpy as np
import torch

from pipeline.datasets.spec import DatasetSpec, Part, PartName
from pipeline.datasets.splitting import split_stratified
from pipeline.host.machine import Machine
from pipeline.settings.config import DatasetConfig


def _read(config: DatasetConfig, part: PartName, machine: Machine) -> Part:
    from sklearn.datasets import load_digits  # seconds, which the other data sets need not wait for

    with machine.computing():
        digits = load_digits()
    pixels = np.rint(digits.images * (255 / 16)).astype(np.uint8)
    whole = Part(torch.from_numpy(pixels).unsqueeze(1), torch.from_numpy(digits.target.astype(np.int64)))
    key = f"dataset.test_fraction={config.test_fraction}"
    training, test = split_stratified(whole, round(len(whole) * config.test_fraction), seed=0, key=key)
    return training if part == "train" else test


DATASETS = (
    DatasetSpec(
        name="digits",
        class_names=lambda config: tuple(str(digit) for digit in range(10)),
        prepare=lambda config: None,
        read=_read,
        fingerprint=lambda config, part, seen: "scikit-learn digits",
        origin=lambda config: "sklearn.datasets.load_digits",
    ),
)
