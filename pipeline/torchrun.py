"""What torchrun tells a process that it has started; without torchrun, of a process alone. Imports no torch."""

from __future__ import annotations

import os


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


def _number(variable: str, alone: int) -> int:
    # Other launchers leave such variables too; this one torchrun alone.
    return int(os.environ.get(variable, alone)) if "TORCHELASTIC_RUN_ID" in os.environ else alone
