"""The content of image files, as hashes: read once, and again when the file system says that a file has changed."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from pipeline.datasets.decoding import ImageFile, worker_count
from pipeline.host import terminal
from pipeline.host.remembered import memory_at

_AT_A_TIME = 64
# From so many files on it takes a while, even of small ones.
_MANY = 5_000
UNREADABLE = "unreadable"


def hash_files(files: Sequence[ImageFile], folder: str, seen: Path) -> list[str]:
    """The hash of each file's content, in their order; `unreadable` for one that cannot be read.

    `seen` is the folder where the hashes of the files in `folder` are remembered.
    """
    memory = memory_at(seen / f"{hashlib.sha256(folder.encode(errors='surrogateescape')).hexdigest()[:16]}.json")
    hashes = [memory.recall(file.path, file.state) for file in files]
    new = [index for index, digest in enumerate(hashes) if digest is None]
    if len(new) >= _MANY:
        terminal.say(f"dataset.root: the content of {len(new):,} new or changed files is read once")
    try:
        for index, digest in zip(new, _hash([files[index].path for index in new]), strict=True):
            hashes[index] = digest
            if digest != UNREADABLE:  # which may be for the moment, or for this user
                memory.note(files[index].path, files[index].state, digest)
    finally:  # interrupted in a store that is there, it goes on from here
        memory.save()
    return hashes


def _hash(paths: list[str]) -> Iterator[str]:
    some = [paths[start : start + _AT_A_TIME] for start in range(0, len(paths), _AT_A_TIME)]
    with ThreadPoolExecutor(worker_count(None)) as pool, terminal.bar("read", len(paths)) as progress:
        try:
            for digests in pool.map(_hash_some, some):
                progress.update(len(digests))
                yield from digests
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def _hash_some(paths: Sequence[str]) -> list[str]:
    return [_hash_one(path) for path in paths]


def _hash_one(path: str) -> str:
    try:
        with open(path, "rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()[:32]
    except OSError:  # decoding says so, or leaves it out
        return UNREADABLE
