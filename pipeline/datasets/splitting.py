"""The stratified, seeded split of a part in two."""

from __future__ import annotations

import numpy as np
from sklearn.model_selection import train_test_split

from pipeline.datasets.spec import Part
from pipeline.errors import UserError


def split_stratified(part: Part, second: int, seed: int, key: str) -> tuple[Part, Part]:
    """Split off `second` images; both sides keep the classes' shares and the order of the images.

    Raises:
        UserError: naming `key`, when a side would not hold every class.
    """
    try:
        chosen, held_out = train_test_split(
            np.arange(len(part)), test_size=second, random_state=seed, stratify=part.labels.numpy()
        )
    except ValueError as error:
        raise UserError(f"{key}: too few of {len(part)} images for a stratified split: {error}") from error
    return part.select(np.sort(chosen)), part.select(np.sort(held_out))
