"""Signals that end a run."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

# What ends a run from outside: Ctrl-C and SIGTERM, and what submitit raises before it has a job queued again.
INTERRUPTIONS = (KeyboardInterrupt, SystemExit)
_ENDING = ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1", "SIGUSR2")


@contextmanager
def termination_as_interrupt() -> Iterator[None]:
    """Let SIGTERM and a closed terminal end the run as Ctrl-C does, so that the tracker can mark it KILLED."""

    def interrupt(signal_number: int, frame: Any) -> None:
        raise KeyboardInterrupt

    if threading.current_thread() is not threading.main_thread():
        yield  # signals are the main thread's affair
        return
    signals = [signal.SIGTERM, *([signal.SIGHUP] if hasattr(signal, "SIGHUP") else [])]
    # What nohup has told to be ignored stays ignored.
    before = {one: signal.getsignal(one) for one in signals if signal.getsignal(one) is not signal.SIG_IGN}
    for one in before:
        signal.signal(one, interrupt)
    try:
        yield
    finally:
        for one, handler in before.items():
            signal.signal(one, handler)


@contextmanager
def undisturbed() -> Iterator[None]:
    """Let nothing interrupt what notes an interruption: Slurm sends SIGTERM to a job that has it queued again."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    signals = [getattr(signal, name) for name in _ENDING if hasattr(signal, name)]
    before = {one: signal.signal(one, signal.SIG_IGN) for one in signals}
    try:
        yield
    finally:
        for one, handler in before.items():
            signal.signal(one, handler)
