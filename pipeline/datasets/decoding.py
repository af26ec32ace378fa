"""From image files to pixels: one file, and many in parallel.

Both ways to hold a part, in memory and streamed, decode by `decode`, and hence to the same bits.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np

from pipeline.datasets.pictures import Reading, Unreadable, read_image
from pipeline.datasets.preprocessing import fit
from pipeline.host import terminal, torchrun
from pipeline.host.errors import UserError
from pipeline.host.machine import Machine
from pipeline.settings.config import DatasetConfig

_MOST_WORKERS = 32
# Files given to the threads at a time: a million futures would take a gigabyte, and a measurement waits for them.
_CHUNK = 256
UNKNOWN = -1


class ImageFile(NamedTuple):
    """A file as it was when the run began; bytes and time are `UNKNOWN` where it could not be asked.

    `state`: what the file system says that changes with the content (`remembered.state_of`).
    """

    path: str
    size: int
    changed_ns: int
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


def quiet_pillow() -> None:
    """Leave out Pillow's warnings of metadata, and of transparency, which is ignored: each would come again and again.

    Not to be called while threads decode: filters belong to the whole process.
    """
    warnings.filterwarnings("ignore", module="PIL")


def decode(file: ImageFile, reading: Reading, size: int) -> np.ndarray:
    """The image in a file as uint8 (C, S, S): the middle, its shorter side scaled to `size`.

    Raises:
        Unreadable: when the file is no image.
        UserError: when it is not the file any more that it was when the run began.
    """
    try:
        return fit(read_image(Path(file.path), reading), size)
    except Unreadable as error:
        raise Unreadable(f"dataset.root: {error}") from error
    except UserError as error:
        raise UserError(f"dataset.root: {error}") from error
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
    if file.changed_ns == UNKNOWN:
        return
    try:
        status = os.stat(file.path)
    except OSError as error:
        raise UserError(
            f"dataset.root: {file.path} has vanished since the run began ({error.strerror}); started again, the "
            "command takes the files as they are then"
        ) from error
    if (status.st_size, status.st_mtime_ns) != (file.size, file.changed_ns):
        what = f"{file.size:,} bytes then, {status.st_size:,} now" if status.st_size != file.size else "another time"
        raise UserError(
            f"dataset.root: {file.path} has changed since the run began ({what}); started again, the command takes "
            "the files as they are then"
        )


def decode_each(
    files: Sequence[ImageFile],
    reading: Reading,
    size: int,
    workers: int | None,
    description: str,
    keep: Callable[[int, np.ndarray], None],
    skip: bool,
    machine: Machine,
) -> dict[int, str]:
    """Decode every file in threads, and give each image with its index to `keep`; some files, then let others measure.

    With `skip`, what cannot be read is left out: the index and the reason of each such file are returned.

    Raises:
        UserError: for a file that cannot be read and is not to be skipped, or has changed since the run began.
    """

    read = decode if skip else decode_or_refuse

    def work(index: int) -> str | None:
        try:
            keep(index, read(files[index], reading, size))
        except Unreadable as error:
            return str(error)
        return None

    quiet_pillow()
    reasons: dict[int, str] = {}
    with ThreadPoolExecutor(worker_count(workers)) as pool, terminal.bar(description, len(files)) as progress:
        try:
            for start in range(0, len(files), _CHUNK):
                indices = range(start, min(start + _CHUNK, len(files)))
                with machine.computing():
                    for index, reason in zip(indices, pool.map(work, indices), strict=True):
                        if reason is not None:
                            reasons[index] = reason
                        progress.update(1)
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    return reasons
