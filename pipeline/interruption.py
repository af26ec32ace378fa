"""Signals that end a run. Imports nothing heavy: it is asked before everything else is imported."""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from pipeline import torchrun

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
    # What nohup has told to be ignored stays ignored.
    before = {one: signal.getsignal(one) for one in _ending() if signal.getsignal(one) is not signal.SIG_IGN}
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


@contextmanager
def interruption_as_one_line() -> Iterator[None]:
    """End an interruption of whatever is under way, imports among it, as one line and exit status 130.

    Once the block has ended, everything is said and written: what is left of the process is not interrupted.
    """
    try:
        with termination_as_interrupt():
            yield
    except KeyboardInterrupt:
        if torchrun.rank() == 0:
            print("error: interrupted", file=sys.stderr)
        sys.exit(130)
    finally:
        for one in (*_ending(), signal.SIGINT):
            signal.signal(one, signal.SIG_IGN)


def _ending() -> list[signal.Signals]:
    return [signal.SIGTERM, *([signal.SIGHUP] if hasattr(signal, "SIGHUP") else [])]
