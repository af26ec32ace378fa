"""The user's own images, decoded to squares of `dataset.image_size` (shorter side scaled, middle cropped).

Once, in parallel, into memory where all of them fit the bound; batch by batch otherwise, to the same bits.
"""

from __future__ import annotations

import functools
import time

import numpy as np
import torch

from pipeline.datasets import folder_findings, folder_listing
from pipeline.datasets.decoding import decode_each, reading, worker_count
from pipeline.datasets.folder_listing import Listing
from pipeline.datasets.spec import DatasetSpec, Part, PartName
from pipeline.datasets.streaming import Streamed
from pipeline.host import terminal
from pipeline.host.errors import UserError
from pipeline.host.files import amount, in_project
from pipeline.host.machine import Machine
from pipeline.settings.config import DatasetConfig

# Of the files that are left out, so many are named.
_NAMED = 5


def _prepare(config: DatasetConfig) -> None:
    _is_streamed(config)


def _read(config: DatasetConfig, part: PartName, machine: Machine) -> Part:
    listing = folder_listing.read_of(config, part)
    streamed, line = _is_streamed(config)
    _say_once(config.root, line)
    return (_stream if streamed else _decode)(listing, config, part, machine)


def _is_streamed(config: DatasetConfig) -> tuple[bool, str]:
    """Whether the images are decoded batch by batch, and the line that says so, and why.

    Raises:
        UserError: when they are to be in memory and exceed its bound.
    """
    parts: tuple[PartName, ...] = ("train", "test") if folder_listing.is_split(config) else ("train",)
    count = sum(len(folder_listing.files_of(config, part)) for part in parts)
    needed = count * len(config.mean) * config.image_size**2
    fits, bound = needed <= 1e9 * config.max_memory_gb, f"dataset.max_memory_gb={config.max_memory_gb:g}"
    if config.loading == "memory" and not fits:
        raise UserError(
            f"{bound}: {count:,} images of {config.image_size} px need {amount(needed)} with dataset.loading=memory; "
            "allowed: more memory, a smaller dataset.image_size, or dataset.loading=auto"
        )
    streamed = config.loading == "stream" or not fits
    why = (
        f"{'at most' if fits else 'more than'} {bound}"
        if config.loading == "auto"
        else f"dataset.loading={config.loading}"
    )
    workers = worker_count(config.workers)
    how = "batch by batch, by {} worker{}" if streamed else "once, into memory, by {} thread{}"
    return streamed, (
        f"image_folder: {count:,} images of {config.image_size} px are {amount(needed)} decoded, {why}: decoded "
        + how.format(workers, "s" if workers > 1 else "")
    )


@functools.cache
def _say_once(root: str, line: str) -> None:
    terminal.say(line)


def _decode(listing: Listing, config: DatasetConfig, part: PartName, machine: Machine) -> Part:
    """Decode every file into one tensor of its final size."""
    size, skip = config.image_size, config.unreadable == "skip"
    pixels = np.empty((len(listing), len(config.mean), size, size), dtype=np.uint8)
    files, keep = list(listing.files), pixels.__setitem__
    reasons = decode_each(files, reading(config), size, config.workers, f"decode {part}", keep, skip, machine)
    if reasons:
        kept = _leave_out(listing, reasons, config, part)
        pixels, listing = pixels[kept], listing.select(kept)
    return Part(torch.from_numpy(pixels), torch.from_numpy(listing.labels))


def _stream(listing: Listing, config: DatasetConfig, part: PartName, machine: Machine) -> Part:
    """Leave the files where they are; where unreadable ones are left out, decode each once to find them."""
    how, size = reading(config), config.image_size
    if config.unreadable == "skip":
        count = f"each of {len(listing):,} {part} images"
        terminal.say(
            f"image_folder: dataset.unreadable=skip: {count} is decoded once before the first batch, to check it"
        )
        started = time.perf_counter()
        files, description = list(listing.files), f"check {part}"
        reasons = decode_each(
            files, how, size, config.workers, description, lambda index, pixels: None, skip=True, machine=machine
        )
        terminal.say(f"image_folder: checked {count} in {time.perf_counter() - started:.1f} s")
        if reasons:
            listing = listing.select(_leave_out(listing, reasons, config, part))
    return Part(Streamed(listing.files, how, size, config.workers), torch.from_numpy(listing.labels))


def _leave_out(listing: Listing, reasons: dict[int, str], config: DatasetConfig, part: PartName) -> np.ndarray:
    """The indices of the files that are left, after a line about each of the first that are not, and their count.

    Raises:
        UserError: when a class has none left.
    """
    kept = np.setdiff1d(np.arange(len(listing)), list(reasons))
    lost = np.setdiff1d(listing.labels, listing.labels[kept])
    if len(lost):
        first = next(reason for index, reason in reasons.items() if listing.labels[index] == lost[0])
        raise UserError(
            f"dataset.unreadable=skip: class '{folder_listing.class_names(config)[lost[0]]}' has no {part} image left "
            f"that can be read; allowed: one in each class at least; the first: {first}"
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
        class_names=folder_listing.class_names,
        prepare=_prepare,
        read=_read,
        fingerprint=folder_listing.fingerprint,
        origin=lambda config: str(in_project(config.root)),
        has_files=True,
        look_again=folder_listing.look_again,
        inspect=folder_findings.inspect,
    ),
)
