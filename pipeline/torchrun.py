"""What torchrun tells a process that it has started; without torchrun, of a process alone. Imports no torch."""

from __future__ import annotations

import atexit
import os
import sys


def world_size() -> int:
    """How many processes run together."""
    return _number("WORLD_SIZE", 1)


def rank() -> int:
    """This process's number among them; 0 writes, logs and speaks."""
    return _number("RANK", 0)


def local_rank() -> int:
    """This process's number among those of its machine."""
    return _number("LOCAL_RANK", 0)


def local_world_size() -> int:
    """How many of them are on this machine."""
    return _number("LOCAL_WORLD_SIZE", 1)


def leave() -> None:
    """End this process, if it is one of several, once it has done all: at once, and well.

    gloo's threads may hold the tensors of the last message for a moment longer, and DistributedDataParallel keeps them
    alive. Python, taken down in that moment, is aborted by them (pytorch/pytorch#179291), and torchrun would report a
    failure of what succeeded.
    """
    if world_size() > 1:
        atexit._run_exitfuncs()
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        os._exit(0)


def _number(variable: str, alone: int) -> int:
    # Other launchers leave such variables too; this one torchrun alone.
    return int(os.environ.get(variable, alone)) if "TORCHELASTIC_RUN_ID" in os.environ else alone
