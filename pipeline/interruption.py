"""Signals that end a run. Imports nothing heavy: it is asked before everything else is imported."""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

_ENDING = [signal.SIGINT, signal.SIGTERM, *([signal.SIGHUP] if hasattr(signal, "SIGHUP") else [])]
# The signals that have come since the run began.
_heard: list[int] = []


@contextmanager
def termination_as_interrupt() -> Iterator[None]:
    """Let SIGTERM and a closed terminal end the run as Ctrl-C does, so that the tracker can mark it KILLED."""

    def interrupt(signal_number: int, frame: Any) -> None:
        _heard.append(signal_number)
        raise KeyboardInterrupt

    if threading.current_thread() is not threading.main_thread():
        yield  # signals are the main thread's affair
        return
    _heard.clear()
    # What nohup has told to be ignored stays ignored.
    before = {one: signal.getsignal(one) for one in _ENDING if signal.getsignal(one) is not signal.SIG_IGN}
    for one in before:
        signal.signal(one, interrupt)
    try:
        yield
    finally:
        for one, handler in before.items():
            signal.signal(one, handler)


def stop_if_interrupted() -> None:
    """Raise the interruption again that a library has swallowed: exporters catch whatever comes in their callbacks.

    Raises:
        KeyboardInterrupt: when a signal has come and the run still goes on.
    """
    if _heard:
        raise KeyboardInterrupt


@contextmanager
def interruption_as_one_line() -> Iterator[None]:
    """End an interruption of whatever is under way, imports among it, as one line and exit status 130.

    Once the block has ended, everything is said and written: what is left of the process is not interrupted.
    """
    try:
        with termination_as_interrupt():
            yield
    except KeyboardInterrupt:
        print("error: interrupted", file=sys.stderr)
        sys.exit(130)
    finally:
        for one in _ENDING:
            signal.signal(one, signal.SIG_IGN)
