"""Which images go to which part: seeded, and stratified by their labels where these are whole numbers, one an image."""

from __future__ import annotations

import numpy as np

from pipeline.datasets.spec import PartName
from pipeline.host.errors import UserError
from pipeline.settings.config import DatasetConfig


def training_and_validation(labels: np.ndarray, config: DatasetConfig) -> tuple[np.ndarray, np.ndarray]:
    """The positions of a train part's `labels` (N) that are trained on, and those that validate.

    Raises:
        UserError: naming the setting by which there are too few.
    """
    taken, of_taken = np.arange(len(labels)), ""
    if config.max_train_samples is not None:
        key = f"dataset.max_train_samples={config.max_train_samples}"
        of_taken = f" of {key}"
        if config.max_train_samples < len(labels):
            taken = take_indices(labels, config.max_train_samples, config.split_seed, key)
    key = f"dataset.validation_fraction={config.validation_fraction}{of_taken}"
    held_out = round(len(taken) * config.validation_fraction)
    training, validation = split_indices(labels[taken], held_out, config.split_seed, key)
    return taken[training], taken[validation]


def chosen_to_test(count: int, config: DatasetConfig) -> np.ndarray:
    """The positions of so many test images that are tested on, the same for every seed."""
    most = config.max_test_samples
    if most is None or most >= count:
        return np.arange(count)
    return np.sort(np.random.default_rng(0).permutation(count)[:most])


def held_out_to_test(labels: np.ndarray, config: DatasetConfig, part: PartName) -> np.ndarray:
    """The positions of `part` among `labels` (N) of a data set that brings no test part, the same for every seed.

    Raises:
        UserError: when there are too few.
    """
    key = f"dataset.test_fraction={config.test_fraction}"
    training, test = split_indices(labels, round(len(labels) * config.test_fraction), seed=0, key=key)
    return training if part == "train" else test


def _classes(labels: np.ndarray) -> np.ndarray:
    """What each side of a choice shall have its share of: the labels; of amounts, and of many an image, all are one."""
    return labels if labels.ndim == 1 and labels.dtype.kind in "iu" else np.zeros(len(labels), np.int64)


def split_indices(labels: np.ndarray, second: int, seed: int, key: str) -> tuple[np.ndarray, np.ndarray]:
    """Split off `second` positions of `labels` (N); both sides keep the classes' shares, and are sorted.

    Each side has at least one of every class that has two; what there is but one of stays on the first side.

    Raises:
        UserError: naming `key`, when a side is smaller than the number of classes.
    """
    # Not needed by the processes that decode images, and half of what they would load.
    from sklearn.model_selection import train_test_split

    _, codes, counts = np.unique(_classes(labels), return_inverse=True, return_counts=True)
    able = np.flatnonzero(counts[codes] > 1)
    try:
        chosen, held_out = train_test_split(able, test_size=second, random_state=seed, stratify=codes[able])
    except ValueError as error:
        raise UserError(f"{key}: too few of {len(labels)} images for a stratified split: {error}") from error
    for code in np.unique(codes[able]):
        for rich, poor in ((chosen, held_out), (held_out, chosen)):
            if code not in codes[poor]:
                # It changes one of its largest class for the first of this one that the other side has.
                given = np.flatnonzero(codes[rich] == code)[0]
                taken = np.flatnonzero(codes[poor] == np.bincount(codes[poor]).argmax())[0]
                rich[given], poor[taken] = poor[taken], rich[given]
    return np.sort(np.concatenate([chosen, np.flatnonzero(counts[codes] == 1)])), np.sort(held_out)


def take_indices(labels: np.ndarray, count: int, seed: int, key: str) -> np.ndarray:
    """Take `count` positions of `labels` (N), of each class its share (rounded) and at least one, sorted.

    Unlike a split in two, what is left out need not hold every class.

    Raises:
        UserError: naming `key`, when there are fewer images than classes.
    """
    labels = _classes(labels)
    classes = len(np.unique(labels))
    if count < classes:
        raise UserError(f"{key}: too few for a stratified choice of {classes} classes; allowed: at least {classes}")
    random = np.random.default_rng(seed)
    shuffled = random.permutation(len(labels))
    mixed = labels[shuffled]
    # Position of each image within its class, as a share: the smallest shares are taken first, a class's first before.
    sizes = np.bincount(mixed)
    rank = np.empty(len(labels))
    for label in np.unique(mixed):
        places = np.arange(sizes[label])
        rank[mixed == label] = np.where(places == 0, 0, (places + 0.5) / sizes[label])
    return np.sort(shuffled[np.argsort(rank, kind="stable")[:count]])
