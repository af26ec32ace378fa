"""From image files to pixels: one file, and many in parallel.

Both ways to hold a part, in memory and streamed, decode by `decode`, and hence to the same bits.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np

from pipeline.datasets.pictures import Reading, Unreadable, read_image
from pipeline.datasets.preprocessing import fit
from pipeline.host import terminal, torchrun
from pipeline.host.errors import UserError
from pipeline.host.files import amount
from pipeline.host.machine import Machine
from pipeline.settings.config import DatasetConfig

_MOST_WORKERS = 32
# Files given to the threads at a time: a million futures would take a gigabyte, and a measurement waits for them.
_CHUNK = 64

Result = TypeVar("Result")


class ImageFile(NamedTuple):
    """A file as it was when the run began; None where it could not be asked.

    `state`: what the file system says that changes with the content (`remembered.state_of`).
    """

    path: str
    size: int | None
    changed_ns: int | None
    state: str | None


def reading(config: DatasetConfig) -> Reading:
    """How the files of a data set become pixels."""
    return Reading(len(config.mean), config.max_image_megapixels, config.white_level)


def worker_count(asked: int | None) -> int:
    """How many threads or processes decode: as many as asked for, or as this process may use processors.

    The processes that torchrun starts on a machine share its processors.
    """
    processors = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return asked or max(1, min(_MOST_WORKERS, processors // torchrun.local_world_size()))


def storage(config: DatasetConfig, name: str, count: int, workers: int) -> tuple[bool, str]:
    """Whether `count` images are decoded batch by batch, and the line that says so, and why.

    Raises:
        UserError: when they are to be in memory and exceed its bound.
    """
    needed = count * len(config.mean) * config.image_size**2
    fits, bound = needed <= 1e9 * config.max_memory_gb, f"dataset.max_memory_gb={config.max_memory_gb:g}"
    if config.loading == "memory" and not fits:
        raise UserError(
            f"{bound}: {count:,} images of {config.image_size} px need {amount(needed)} with dataset.loading=memory; "
            "allowed: more memory, a smaller dataset.image_size, or dataset.loading=auto"
        )
    streamed = config.loading == "stream" or not fits
    why = f"dataset.loading={config.loading}"
    if config.loading == "auto":
        why = f"{'at most' if fits else 'more than'} {bound}"
    how = "batch by batch" if streamed else "once, into memory"
    return streamed, (
        f"{name}: {count:,} images of {config.image_size} px are {amount(needed)} decoded, {why}: decoded {how}, "
        f"by {workers} thread{'s' if workers > 1 else ''}"
    )


def quiet_pillow() -> None:
    """Leave out Pillow's warnings of metadata, and of transparency, which is ignored: each would come again and again.

    Not to be called while threads decode: filters belong to the whole process.
    """
    warnings.filterwarnings("ignore", module="PIL")


def in_threads(
    work: Callable[[Any], Result],
    items: Sequence[Any] | np.ndarray,
    workers: int | None,
    machine: Machine,
    description: str,
) -> Iterator[Result]:
    """What `work` gives of each item, in their order; it is done to some, then others may measure."""
    quiet_pillow()
    with ThreadPoolExecutor(worker_count(workers)) as pool, terminal.bar(description, len(items)) as progress:
        for start in range(0, len(items), _CHUNK):
            with machine.computing():
                results = list(pool.map(work, items[start : start + _CHUNK]))
            progress.update(len(results))
            yield from results


def decode(file: ImageFile, reading: Reading, size: int) -> np.ndarray:
    """The image in a file as uint8 (C, S, S): the middle, its shorter side scaled to `size`.

    Raises:
        Unreadable: when the file is no image.
        UserError: when it is not the file any more that it was when the run began.
    """
    try:
        return fit(read_image(Path(file.path), reading), size)
    except UserError as error:
        raise type(error)(f"dataset.root: {error}") from error
    finally:  # which also tells why a file is unreadable that was not
        _check_unchanged(file)


def decode_or_refuse(file: ImageFile, reading: Reading, size: int) -> np.ndarray:
    """The same, where an image that cannot be read ends the run.

    Raises:
        UserError: which names the setting that leaves such files out.
    """
    try:
        return decode(file, reading, size)
    except Unreadable as error:
        raise UserError(f"{error} (dataset.unreadable=skip leaves such files out)") from error


def _check_unchanged(file: ImageFile) -> None:
    if file.size is None:
        return
    try:
        status = os.stat(file.path)
        if (status.st_size, status.st_mtime_ns) == (file.size, file.changed_ns):
            return
        differs = f"{file.size:,} bytes then, {status.st_size:,} now" if status.st_size != file.size else "another time"
        what = f"changed since the run began ({differs})"
    except OSError as error:
        what = f"vanished since the run began ({error.strerror})"
    raise UserError(
        f"dataset.root: {file.path} has {what}; started again, the command takes the files as they are then"
    )


def decode_each(
    files: np.ndarray, config: DatasetConfig, machine: Machine, description: str, skip: bool = False
) -> Iterator[np.ndarray | Unreadable]:
    """The image in each file (N), decoded in threads, or with `skip` why it cannot be read.

    Raises:
        UserError: for a file that cannot be read and is not to be skipped, or has changed since the run began.
    """
    one: Callable[..., np.ndarray | Unreadable] = _decode_or_tell if skip else decode_or_refuse
    work = partial(one, reading=reading(config), size=config.image_size)
    return in_threads(work, files, config.workers, machine, description)


def _decode_or_tell(file: ImageFile, reading: Reading, size: int) -> np.ndarray | Unreadable:
    try:
        return decode(file, reading, size)
    except Unreadable as error:
        return error
