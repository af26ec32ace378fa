"""The stratified, seeded split of a part in two."""

from __future__ import annotations

import numpy as np

from pipeline.datasets.spec import Part
from pipeline.errors import UserError


def split_indices(labels: np.ndarray, second: int, seed: int, key: str) -> tuple[np.ndarray, np.ndarray]:
    """Split off `second` positions of `labels` (N); both sides keep the classes' shares, and are sorted.

    Raises:
        UserError: naming `key`, when a side would not hold every class.
    """
    # Not needed by the processes that decode images, and half of what they would load.
    from sklearn.model_selection import train_test_split

    try:
        chosen, held_out = train_test_split(
            np.arange(len(labels)), test_size=second, random_state=seed, stratify=labels
        )
    except ValueError as error:
        raise UserError(f"{key}: too few of {len(labels)} images for a stratified split: {error}") from error
    return np.sort(chosen), np.sort(held_out)


def split_stratified(part: Part, second: int, seed: int, key: str) -> tuple[Part, Part]:
    """Split off `second` images, as `split_indices` does."""
    chosen, held_out = split_indices(part.labels.numpy(), second, seed, key)
    return part.select(chosen), part.select(held_out)


def take_stratified(part: Part, count: int, seed: int, key: str) -> Part:
    """Take `count` images, of each class its share (rounded), in the order of the images.

    Unlike a split in two, what is left out need not hold every class.

    Raises:
        UserError: naming `key`, when there are fewer images than classes.
    """
    classes = len(np.unique(part.labels.numpy()))
    if count < classes:
        raise UserError(f"{key}: too few for a stratified choice of {classes} classes; allowed: at least {classes}")
    random = np.random.default_rng(seed)
    shuffled = random.permutation(len(part))
    labels = part.labels.numpy()[shuffled]
    # Position of each image within its class, as a share: the smallest shares are taken first.
    sizes = np.bincount(labels)
    rank = np.empty(len(part))
    for label in np.unique(labels):
        rank[labels == label] = (np.arange(sizes[label]) + 0.5) / sizes[label]
    return part.select(np.sort(shuffled[np.argsort(rank, kind="stable")[:count]]))
