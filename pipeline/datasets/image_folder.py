"""The user's own images, decoded to squares of `dataset.image_size` (shorter side scaled, middle cropped).

Once, in parallel, into memory where all of them fit the bound; batch by batch otherwise, to the same bits.
"""

from __future__ import annotations

import functools
import time

import numpy as np
import torch

from pipeline.datasets import folder, folder_findings
from pipeline.datasets.decoding import decode_each, decode_or_refuse, reading, storage, worker_count
from pipeline.datasets.pictures import Unreadable
from pipeline.datasets.spec import DatasetSpec, Part, PartName
from pipeline.datasets.unmade import Unmade
from pipeline.host import terminal
from pipeline.host.errors import UserError
from pipeline.host.files import in_project
from pipeline.host.machine import Machine
from pipeline.settings.config import DatasetConfig

# Of the files that are left out, so many are named.
_NAMED = 5


def _prepare(config: DatasetConfig) -> None:
    _is_streamed(config)


def _read(config: DatasetConfig, part: PartName, machine: Machine) -> Part:
    """A part in memory or streamed; where unreadable files are left out, each is decoded once to find them."""
    listing = folder.read_of(config, part)
    streamed, line = _is_streamed(config)
    _say_once(config.root, line)
    skip = config.unreadable == "skip"
    if streamed and not skip:
        return Part(_stream(listing, config), torch.from_numpy(listing.labels))
    pixels = None
    if streamed:
        count, started = f"each of {len(listing):,} {part} images", time.perf_counter()
        terminal.say(
            f"image_folder: dataset.unreadable=skip: {count} is decoded once before the first batch, to check it"
        )
    else:
        pixels = np.empty((len(listing), len(config.mean), config.image_size, config.image_size), dtype=np.uint8)
    reasons: dict[int, str] = {}
    decoded = decode_each(listing.files, config, machine, f"{'check' if streamed else 'decode'} {part}", skip)
    for index, found in enumerate(decoded):
        if isinstance(found, Unreadable):
            reasons[index] = str(found)
        elif pixels is not None:
            pixels[index] = found
    if streamed:
        terminal.say(f"image_folder: checked {count} in {time.perf_counter() - started:.1f} s")
    if reasons:
        kept = _leave_out(listing, reasons, config, part)
        listing, pixels = listing.select(kept), pixels if pixels is None else pixels[kept]
    images = _stream(listing, config) if pixels is None else torch.from_numpy(pixels)
    return Part(images, torch.from_numpy(listing.labels))


def _stream(listing: folder.Listing, config: DatasetConfig) -> Unmade:
    size = config.image_size
    make = functools.partial(decode_or_refuse, reading=reading(config), size=size)
    return Unmade(listing.files, make, (len(config.mean), size, size), config.workers)


def _is_streamed(config: DatasetConfig) -> tuple[bool, str]:
    """Whether the images are decoded batch by batch, and the line that says so, and why.

    Raises:
        UserError: when they are to be in memory and exceed its bound.
    """
    parts: tuple[PartName, ...] = ("train", "test") if folder.is_split(config) else ("train",)
    count = sum(len(folder.files_of(config, part)) for part in parts)
    return storage(config, "image_folder", count, worker_count(config.workers))


@functools.cache
def _say_once(root: str, line: str) -> None:
    terminal.say(line)


def _leave_out(listing: folder.Listing, reasons: dict[int, str], config: DatasetConfig, part: PartName) -> np.ndarray:
    """The indices of the files that are left, after a line about each of the first that are not, and their count.

    Raises:
        UserError: when a class has none left.
    """
    kept = np.setdiff1d(np.arange(len(listing)), list(reasons))
    lost = np.setdiff1d(listing.labels, listing.labels[kept])
    if len(lost):
        first = next(reason for index, reason in reasons.items() if listing.labels[index] == lost[0])
        raise UserError(
            f"dataset.unreadable=skip: class '{folder.class_names(config)[lost[0]]}' has no {part} image left that can "
            f"be read; allowed: one in each class at least; the first: {first}"
        )
    for reason in list(reasons.values())[:_NAMED]:
        terminal.warn(f"left out: {reason}")
    more = f", {len(reasons) - _NAMED:,} of them not named here" if len(reasons) > _NAMED else ""
    count = f"{len(reasons):,} of {len(listing):,} {part} images"
    terminal.warn(f"dataset.unreadable=skip: {count} cannot be read and are left out{more}")
    return kept


DATASETS = (
    DatasetSpec(
        name="image_folder",
        class_names=folder.class_names,
        prepare=_prepare,
        read=_read,
        fingerprint=folder.fingerprint,
        origin=lambda config: str(in_project(config.root)),
        has_files=True,
        look_again=folder.look_again,
        inspect=folder_findings.inspect,
    ),
)
