"""What the content of image files tells: copies in both parts, pictures of one colour, pictures that come out dark."""

from __future__ import annotations

import os
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from pipeline.datasets.contents import UNREADABLE
from pipeline.datasets.decoding import ImageFile, quiet_pillow, reading, worker_count
from pipeline.datasets.folder_listing import Listing
from pipeline.datasets.pictures import Reading, is_deep, read_image, white_of
from pipeline.datasets.preprocessing import fit
from pipeline.host.errors import UserError
from pipeline.host.machine import Machine
from pipeline.settings.config import DatasetConfig

# Files of each part that are decoded to look at them.
_LOOKED_AT = 500
# Files that are read while a measurement waits.
_SLICE = 64
# A picture is dark whose brightest value is below this share of white, as of 12 bits that are read as 16.
_DARK = 1 / 4


class Look(NamedTuple):
    """What one picture tells: one colour throughout, a channel for what is transparent, its brightest value, white."""

    constant: bool
    has_alpha: bool
    high: float
    white: float


def find_copies(train: Mapping[str, str], test: Mapping[str, str], root: Path) -> str:
    """The line about files of the test part that are byte-equal to files of the train part; empty where none is.

    Both are hashes of files by their paths.
    """
    originals = {digest: path for path, digest in train.items() if digest != UNREADABLE}
    copies = [(path, originals[digest]) for path, digest in test.items() if digest in originals]
    if not copies:
        return ""
    shown = " is ".join(os.path.relpath(path, root) for path in copies[0])
    return (
        f"{len(copies):,} of {len(test):,} test files are byte-equal to training files: what is known by heart is "
        f"no accuracy; the first: {shown}"
    )


def look_at(train: Listing, test: Listing, config: DatasetConfig, machine: Machine) -> dict[str, str]:
    """The lines about the pictures themselves, by their names; of each part so many are looked at, evenly spread."""
    files = [file for part in (train, test) for file in part.files[_spread(len(part))]]
    total = len(train) + len(test)
    looks = _looks(files, reading(config), config, machine)
    of = f"of the {len(looks):,} images" + (f" that were looked at, of {total:,}," if len(looks) < total else "")
    return {"constant": _constant(looks, of), "dark": _dark(looks, of)}


def _spread(count: int) -> np.ndarray:
    return np.unique(np.linspace(0, count - 1, min(count, _LOOKED_AT)).astype(np.int64))


def _looks(files: list[ImageFile], how: Reading, config: DatasetConfig, machine: Machine) -> list[tuple[str, Look]]:
    looks = []
    quiet_pillow()
    with ThreadPoolExecutor(worker_count(config.workers)) as pool:
        for start in range(0, len(files), _SLICE):
            some = files[start : start + _SLICE]
            with machine.computing():
                found = list(pool.map(lambda file: _look(Path(file.path), how, config.image_size), some))
            looks += [(file.path, look) for file, look in zip(some, found, strict=True) if look is not None]
    return looks


def _look(path: Path, how: Reading, size: int) -> Look | None:
    """What a picture tells, or None where it cannot be read, which decoding will say."""
    try:
        pixels = fit(read_image(path, how), size)
        with Image.open(path) as image:
            has_alpha = image.mode.endswith(("A", "a")) or "transparency" in image.info
            high, white = float(pixels.max()), 255.0
            if is_deep(image):
                high, white = float(np.asarray(image).max()), white_of(image, how.white_level)
        return Look(bool((pixels == pixels[:, :1, :1]).all()), has_alpha, high, white)
    except (UserError, OSError):
        return None


def _constant(looks: list[tuple[str, Look]], of: str) -> str:
    found = [(path, look) for path, look in looks if look.constant]
    if not found:
        return ""
    with_alpha = sum(look.has_alpha for _, look in found)
    dropped = f"; {with_alpha:,} of them have an alpha channel, which is not read" if with_alpha else ""
    return f"{len(found):,} {of} are of one colour throughout{dropped}; the first: {found[0][0]}"


def _dark(looks: list[tuple[str, Look]], of: str) -> str:
    found = [look for _, look in looks if look.high <= _DARK * look.white and not look.constant]
    if not found or 2 * len(found) < len(looks):
        return ""
    brightest = max(found, key=lambda look: look.high / look.white)
    bits = max(1, int(brightest.high)).bit_length()
    hint = (
        f"; dataset.white_level={2**bits - 1} reads {bits} bits"
        if brightest.white > 255 and brightest.high >= 1
        else ", as of files with fewer bits than they have room for"
    )
    return (
        f"{len(found):,} {of} are dark: read as 0 to {brightest.white:g}, none of them has a value above "
        f"{brightest.high:g}{hint}"
    )
