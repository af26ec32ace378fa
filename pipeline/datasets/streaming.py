"""Images that do not fit in memory: decoded batch by batch, by worker processes, ahead of who takes them."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from multiprocessing import forkserver
from multiprocessing.context import BaseContext
from multiprocessing.synchronize import Event

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from pipeline.datasets.decoding import decode_each, decode_or_refuse, quiet_pillow, reading, worker_count
from pipeline.host.errors import UserError
from pipeline.host.machine import Machine
from pipeline.settings.config import DatasetConfig

# Batches that each worker has ready or under way.
_PREFETCH = 2
# How long a worker waits for a measurement until it asks whether it is still needed: leaving would wait for it.
_PATIENCE_S = 0.5


@dataclass(frozen=True)
class Streamed:
    """The images of `files` (N, each an `ImageFile`), decoded when they are asked for; `Pixels` of a part."""

    files: np.ndarray
    config: DatasetConfig

    @property
    def shape(self) -> tuple[int, ...]:
        return len(self.files), len(self.config.mean), self.config.image_size, self.config.image_size

    def __getitem__(self, indices: np.ndarray) -> Streamed:
        return Streamed(self.files[indices], self.config)

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
        files = [self.files[indices.numpy()] for indices in chosen]
        if len(files) > 1:
            yield from self._decode_ahead(files, device, machine)
        elif files:
            decoded = decode_each(files[0], self.config, machine, "decode")
            yield torch.from_numpy(np.stack(list(decoded))).to(device)  # type: ignore[arg-type]

    def _decode_ahead(
        self, files: list[np.ndarray], device: torch.device, machine: Machine
    ) -> Generator[Tensor, None, None]:
        workers, batches = min(worker_count(self.config.workers), len(files)), None
        try:
            processes = _clean_processes()
            left = processes.Event()
            loader = DataLoader(
                _Decoder(self.config, machine, left),
                batch_size=None,  # the files of a batch are one thing to decode
                sampler=files,  # each in its turn: a worker need not know all of them
                num_workers=workers,
                prefetch_factor=_PREFETCH,
                pin_memory=device.type == "cuda",
                multiprocessing_context=processes,
                worker_init_fn=_prepare_worker,
                generator=torch.Generator(),  # torch's own, which dropout draws from, is left alone
            )
            batches = iter(loader)
            for found in batches:
                if isinstance(found, UserError):
                    raise found
                yield found.to(device, non_blocking=True)
        # A worker was killed, or memory, files or sockets cannot be had for them.
        except (RuntimeError, OSError, EOFError) as error:
            raise _failure(workers, " ".join(str(error).split()) or type(error).__name__) from error
        finally:
            if batches is not None:
                left.set()
                # Now, and not when the last traceback that knows of the iterator is gone: a sweep goes on after it.
                batches._shutdown_workers()  # type: ignore[attr-defined]


@dataclass(frozen=True)
class _Decoder(Dataset[Tensor | UserError]):
    """What a worker does: a batch of files to pixels in shared memory, or to what is wrong.

    An exception would come out of the DataLoader wrapped in the worker's traceback; so it is given as a result.
    """

    config: DatasetConfig
    machine: Machine
    left: Event  # set when nobody takes the batches any more

    def __getitem__(self, files: np.ndarray) -> Tensor | UserError:
        while not self.left.is_set():
            with contextlib.suppress(TimeoutError), self.machine.computing(_PATIENCE_S):
                return self._decode(files)
        return torch.empty(0)

    def _decode(self, files: np.ndarray) -> Tensor | UserError:
        quiet_pillow()
        how, size = reading(self.config), self.config.image_size
        try:
            # Allocated before anything is decoded, and not while it is sent, where a failure would be lost.
            pixels = torch.empty((len(files), how.channels, size, size), dtype=torch.uint8).share_memory_()
        except (RuntimeError, MemoryError) as error:
            workers = torch.utils.data.get_worker_info()
            return _failure(workers.num_workers if workers else 0, " ".join(str(error).split()))
        try:
            for into, file in zip(pixels.numpy(), files, strict=True):
                into[...] = decode_or_refuse(file, how, size)
        except UserError as error:
            return UserError(str(error))
        return pixels


def _prepare_worker(worker: int) -> None:
    """Let this worker end when the process that started it does, be it killed, and without a word.

    By itself it waits for the server's end, and the server for that of its workers. What it raises comes as a result;
    what it would print is a traceback of a thread that hands a batch over when the run is interrupted.
    """
    parent = multiprocessing.parent_process()
    assert parent is not None
    sys.stderr = open(os.devnull, "w")  # noqa: SIM115

    def wait() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


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
