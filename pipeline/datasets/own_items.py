"""One item of a data set of the user's own: its image and its label, in the forms that libraries give them."""

from __future__ import annotations

import hashlib
import operator
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from pipeline.datasets.pictures import upright
from pipeline.host.declared import run_users
from pipeline.host.errors import UserError

# The columns of Hugging Face's data sets.
_IMAGE, LABELS = ("image", "img"), ("label", "labels", "fine_label")


def read_item(source: Any, index: int, what: str) -> tuple[Image.Image | Tensor, int | str]:
    """The image, PIL's or a float tensor (C, H, W), and the label of an item; `what` begins the line of an error.

    Raises:
        UserError: when it is something else.
        UserCodeError: when the user's code raises.
    """
    item = run_users(what, lambda: source[index])
    if isinstance(item, Mapping):
        image, label = (next((name for name in names if name in item), None) for names in (_IMAGE, LABELS))
        if image is None or label is None:
            allowed = f"{' or '.join(_IMAGE)}, and {' or '.join(LABELS)}"
            raise UserError(f"{what} has {', '.join(map(str, item))}; allowed: {allowed}")
        return _image(item[image], what), _label(item[label], what)
    if not isinstance(item, tuple | list) or len(item) != 2:
        of = f" of {len(item)}" if isinstance(item, tuple | list) else ""
        raise UserError(f"{what} is a {type(item).__name__}{of}; allowed: a pair (image, label), or a dict of both")
    return _image(item[0], what), _label(item[1], what)


def _image(given: Any, what: str) -> Image.Image | Tensor:
    if isinstance(given, Image.Image):
        return run_users(what, lambda: upright(given))  # a file may only have been opened so far
    array = given.numpy() if isinstance(given, Tensor) and given.dtype == torch.uint8 else given
    if isinstance(array, np.ndarray) and array.dtype == np.uint8:
        if array.ndim == 3 and array.shape[0] in (1, 3, 4) and (isinstance(given, Tensor) or array.shape[2] > 4):
            array = array.transpose(1, 2, 0)
        if array.ndim == 3 and array.shape[2] == 1:
            array = array[:, :, 0]
        if array.ndim == 2 or (array.ndim == 3 and array.shape[2] in (3, 4)):
            return Image.fromarray(np.ascontiguousarray(array))
    elif isinstance(given, np.ndarray) and np.issubdtype(given.dtype, np.floating):
        given = torch.from_numpy(given)
    if isinstance(given, Tensor) and given.is_floating_point() and given.ndim == 3:
        return given.float()
    kind = f"{given.dtype} {tuple(given.shape)}" if isinstance(given, Tensor | np.ndarray) else type(given).__name__
    raise UserError(
        f"{what} is of type {kind}; allowed: a PIL image, uint8 (H, W), (H, W, C) or as a tensor (C, H, W), of 1, 3 "
        "or 4 channels, or a float tensor (C, H, W)"
    )


def _label(given: Any, what: str) -> int | str:
    if isinstance(given, str):
        return given
    try:
        return operator.index(given)  # also of numpy's numbers, and of tensors with a single one
    except TypeError:
        pass
    raise UserError(
        f"{what} has a label of type {type(given).__name__}; allowed: a whole number, or a class by its name"
    )


def mark_of(image: Image.Image | Tensor) -> bytes:
    """A hash of an image as it is."""
    if isinstance(image, Tensor):
        content, kind = image.contiguous().numpy().tobytes(), str(tuple(image.shape))
    else:
        content, kind = image.tobytes(), f"{image.mode} {image.size} {image.getpalette()}"
    return hashlib.sha256(kind.encode() + content).digest()[:16]
