"""Images that do not fit in memory: decoded batch by batch, by worker processes, ahead of who takes them."""

from __future__ import annotations

import contextlib
import math
import multiprocessing
import os
import shutil
import signal
import sys
import threading
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing import forkserver
from multiprocessing.context import BaseContext
from multiprocessing.synchronize import Event
from pathlib import Path
from types import TracebackType

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from pipeline.datasets.decoding import ImageFile, decode_each, decode_or_refuse, quiet_pillow, worker_count
from pipeline.datasets.pictures import Reading
from pipeline.host.errors import UserError
from pipeline.host.machine import Machine

# Batches that each worker has ready or under way.
_PREFETCH = 2
# How long a worker waits for a measurement until it asks whether it is still needed: leaving would wait for it.
_PATIENCE_S = 0.5
_SHARED_MEMORY = Path("/dev/shm")
# Bytes, more than enough for those by which processes take turns.
_FOR_SEMAPHORES = 1_000_000


@dataclass(frozen=True)
class Streamed:
    """The images of `files` (N, each an `ImageFile`), decoded when they are asked for; `Pixels` of a part."""

    files: np.ndarray
    reading: Reading
    size: int
    workers: int | None

    @property
    def shape(self) -> tuple[int, ...]:
        return len(self.files), self.reading.channels, self.size, self.size

    def __getitem__(self, indices: np.ndarray) -> Streamed:
        return Streamed(self.files[indices], self.reading, self.size, self.workers)

    def batches(
        self, chosen: Sequence[Tensor], device: torch.device, machine: Machine
    ) -> Generator[Tensor, None, None]:
        """For each of `chosen` (B) its images: uint8 (B, C, S, S) on `device`.

        Worker processes start with the first batch and end with the last, or when the iterator is closed. Each
        asks `machine` before a batch, so that they do not work ahead while somebody measures. A single batch is
        decoded here, by threads: processes would only be ready when it is done.

        Raises:
            UserError: for an image that cannot be read or has changed, a worker that was killed, or too little
                shared memory.
        """
        if len(chosen) == 1:
            yield self._decode_here(chosen[0], machine).to(device)
        elif chosen:
            yield from self._decode_ahead(chosen, device, machine)

    def _decode_here(self, indices: Tensor, machine: Machine) -> Tensor:
        pixels = np.empty((len(indices), *self.shape[1:]), np.uint8)
        files = list(self.files[indices.numpy()])
        keep = pixels.__setitem__
        decode_each(files, self.reading, self.size, self.workers, "decode", keep, skip=False, machine=machine)
        return torch.from_numpy(pixels)

    def _decode_ahead(
        self, chosen: Sequence[Tensor], device: torch.device, machine: Machine
    ) -> Generator[Tensor, None, None]:
        workers = min(worker_count(self.workers), len(chosen))
        self._check_shared_memory(max(map(len, chosen)), workers)
        with _told_in_one_line(workers):
            processes = _clean_processes()
            left = processes.Event()
            loader = DataLoader(
                _Decoder(self.reading, self.size, machine, left),
                batch_size=None,  # an index is a batch already
                sampler=_FilesOfBatches(self.files, chosen),
                num_workers=workers,
                prefetch_factor=_PREFETCH,
                pin_memory=device.type == "cuda",
                multiprocessing_context=processes,
                worker_init_fn=_prepare_worker,
                generator=torch.Generator(),  # torch's own, which dropout draws from, is left alone
            )
            batches = iter(loader)
        try:
            for _ in chosen:
                with _told_in_one_line(workers):
                    found = next(batches)
                if isinstance(found, UserError):
                    raise found
                yield found.to(device, non_blocking=True)
        finally:
            left.set()
            # Now, and not when the last traceback that knows of the iterator is gone: a sweep goes on after a failure.
            batches._shutdown_workers()  # type: ignore[attr-defined]

    def _check_shared_memory(self, batch_size: int, workers: int) -> None:
        """Refuse where not even one batch fits, before a DataLoader that cannot start leaves its own traces."""
        needed = batch_size * math.prod(self.shape[1:]) + _FOR_SEMAPHORES
        if _SHARED_MEMORY.is_dir() and (free := shutil.disk_usage(_SHARED_MEMORY).free) < needed:
            raise _failure(
                workers, f"a batch takes {needed / 1e6:,.1f} MB of shared memory, {free / 1e6:,.1f} are free"
            )


@dataclass(frozen=True)
class _FilesOfBatches:
    """The files of each batch, when its turn comes: a worker need not know all of them."""

    files: np.ndarray
    chosen: Sequence[Tensor]

    def __iter__(self) -> Iterator[list[ImageFile]]:
        for indices in self.chosen:
            yield list(self.files[indices.numpy()])

    def __len__(self) -> int:
        return len(self.chosen)


@dataclass(frozen=True)
class _Decoder(Dataset[Tensor | UserError]):
    """What a worker does: a batch of files to pixels in shared memory, or to what is wrong.

    An exception would come out of the DataLoader wrapped in the worker's traceback; so it is given as a result.
    """

    reading: Reading
    size: int
    machine: Machine
    left: Event  # set when nobody takes the batches any more

    def __getitem__(self, files: list[ImageFile]) -> Tensor | UserError:
        with contextlib.ExitStack() as turn:
            while True:
                try:
                    turn.enter_context(self.machine.computing(_PATIENCE_S))
                    break
                except TimeoutError:
                    if self.left.is_set():
                        return torch.empty(0)
            return self._decode(files)

    def _decode(self, files: list[ImageFile]) -> Tensor | UserError:
        quiet_pillow()
        try:
            # Allocated before anything is decoded, and not while it is sent, where a failure would be lost.
            pixels = torch.empty(
                (len(files), self.reading.channels, self.size, self.size), dtype=torch.uint8
            ).share_memory_()
        except (RuntimeError, MemoryError) as error:
            workers = torch.utils.data.get_worker_info()
            return _failure(workers.num_workers if workers else 0, " ".join(str(error).split()))
        into = pixels.numpy()
        try:
            for index, file in enumerate(files):
                into[index] = decode_or_refuse(file, self.reading, self.size)
        except UserError as error:
            return UserError(str(error))
        return pixels


def _prepare_worker(worker: int) -> None:
    """Let this worker end when the process that started it does, be it killed, and without a word.

    By itself it waits for the server's end, and the server for that of its workers. If the run is interrupted while
    it takes a batch over, the thread that hands it over would print a traceback beside the run's one line.
    """
    parent = multiprocessing.parent_process()
    assert parent is not None
    sys.excepthook = _tell_unless_disconnected

    def wait() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


def _tell_unless_disconnected(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    if not isinstance(error, EOFError | ConnectionError):
        sys.__excepthook__(kind, error, trace)


@contextlib.contextmanager
def _told_in_one_line(workers: int) -> Iterator[None]:
    """What the machinery of workers raises: one was killed, or memory, files or sockets cannot be had for them."""
    try:
        yield
    except (RuntimeError, OSError, EOFError) as error:
        raise _failure(workers, " ".join(str(error).split()) or type(error).__name__) from error


def _failure(workers: int, reason: str) -> UserError:
    return UserError(
        f"dataset.workers={workers}: the processes that decode images failed: {reason}; allowed: fewer of them, "
        f"smaller batches, or more memory: each takes its own, and shared memory (/dev/shm) for {_PREFETCH} batches"
    )


def _clean_processes() -> BaseContext:
    """How workers are started: forked from a server that has imported this module and nothing else is running in.

    A fork of this process would take CUDA's state, OpenMP's threads and held locks along; a spawned one imports
    torch anew in every epoch.
    """
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    # A worker also sets the start method that is this process's own: joblib's, in a parallel sweep, has to be known.
    context.set_forkserver_preload([__name__, type(multiprocessing.get_context()).__module__])
    if threading.current_thread() is threading.main_thread():
        # Inherited by the server and the workers: Ctrl-C is this process's to answer, and it ends them.
        before = signal.signal(signal.SIGINT, signal.SIG_IGN)
        try:
            forkserver.ensure_running()
        finally:
            signal.signal(signal.SIGINT, before)
    return context
