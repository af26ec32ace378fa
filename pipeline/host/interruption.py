"""Signals that end a run. Imports nothing heavy: it is asked before everything else is imported."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from pipeline.host import torchrun

# What ends a run from outside: Ctrl-C and SIGTERM, and what submitit raises before it has a job queued again.
INTERRUPTIONS = (KeyboardInterrupt, SystemExit)
_ENDING = [signal.SIGINT, signal.SIGTERM, *([signal.SIGHUP] if hasattr(signal, "SIGHUP") else [])]
# One of these is the signal that submitit listens to, in one of its jobs.
_USERS = [getattr(signal, name) for name in ("SIGUSR1", "SIGUSR2") if hasattr(signal, name)]
# The signals that have come since the outermost `termination_as_interrupt` began, and whether there is one.
_heard: list[int] = []
_inside: list[bool] = []


@contextmanager
def termination_as_interrupt() -> Iterator[None]:
    """Let SIGTERM and a closed terminal end the run as Ctrl-C does, so that the tracker can mark it KILLED.

    The first such signal is the last, so that nothing cuts off what tidies up. A job that Slurm preempts is handed
    to submitit, which has it queued again: by itself Slurm takes one that ends before its time for a failed one.
    A block within a block leaves the handlers as they are. In another thread than the main one, nothing changes.

    Raises:
        KeyboardInterrupt: when a signal has come already in the block around this one, and was swallowed.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    if _inside:
        stop_if_interrupted()
        yield
        return

    def interrupt(signal_number: int, frame: Any) -> None:
        if signal_number == signal.SIGTERM and submitits and _is_preempted():
            queue_again(next(iter(submitits)), frame)
        deafen()
        _heard.append(signal_number)
        raise KeyboardInterrupt

    def queue_again(signal_number: int, frame: Any) -> None:
        deafen()
        try:
            submitits[signal_number](signal_number, frame)  # and this raises
        except BaseException:
            _heard.append(signal_number)
            raise

    def deafen() -> None:
        for one in handlers:
            signal.signal(one, signal.SIG_IGN)

    submitits: dict[int, Any] = {one: signal.getsignal(one) for one in _USERS if callable(signal.getsignal(one))}
    ending = [one for one in _heeded() if one in _ENDING]
    handlers: dict[int, Any] = dict.fromkeys(ending, interrupt) | dict.fromkeys(submitits, queue_again)
    _inside.append(True)
    try:
        with _handling(handlers):
            yield
    finally:
        _heard.clear()
        _inside.clear()


def _is_preempted() -> bool:
    """Whether SIGTERM means that this job must leave its node for a while: a job that is cancelled no longer runs."""
    # By its number alone, one task of each array would be answered for by all of them.
    array, task = os.environ.get("SLURM_ARRAY_JOB_ID"), os.environ.get("SLURM_ARRAY_TASK_ID")
    job = f"{array}_{task}" if array and task else os.environ.get("SLURM_JOB_ID")
    if job is None or os.environ.get("SUBMITIT_EXECUTOR") != "slurm":
        return False
    try:
        command = ["squeue", "--noheader", f"--jobs={job}", "--format=%T"]
        listed = subprocess.run(command, capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return False
    return listed.stdout.strip() == "RUNNING"


@contextmanager
def undisturbed() -> Iterator[None]:
    """Let no signal interrupt what notes an interruption."""
    with _handling(dict.fromkeys(_heeded(), signal.SIG_IGN)):
        yield


@contextmanager
def deferred() -> Iterator[None]:
    """Hold signals back until the block has ended: torch.save, interrupted, aborts the process."""
    caught: list[int] = []
    try:
        with _handling(dict.fromkeys(_heeded(), lambda signal_number, frame: caught.append(signal_number))):
            yield
    finally:
        for one in caught:
            signal.raise_signal(one)


@contextmanager
def ctrl_c_for_us_alone() -> Iterator[None]:
    """Let the processes that are started in the block not hear Ctrl-C, which a terminal sends to all of them.

    Unlike a signal that is ignored, one that is blocked is not lost for this process.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _heeded() -> list[int]:
    """The signals that end a run, but for those that are ignored, as nohup has it: these stay so."""
    return [one for one in (*_ENDING, *_USERS) if signal.getsignal(one) not in (signal.SIG_IGN, None)]


@contextmanager
def _handling(handlers: Mapping[int, Any]) -> Iterator[None]:
    """Have signals handled so while the block runs. In another thread than the main one, nothing changes."""
    if threading.current_thread() is not threading.main_thread():
        yield  # signals are the main thread's affair
        return
    before = {one: signal.getsignal(one) for one in handlers}
    for one, handler in handlers.items():
        signal.signal(one, handler)
    try:
        yield
    finally:
        for one, earlier in before.items():
            signal.signal(one, earlier)


def stop_if_interrupted() -> None:
    """Raise the interruption again that was swallowed: in a finalizer, or in a callback of an exporter.

    Signals are ignored from the first one on: who swallows it, and does not ask here, can only be killed.

    Raises:
        KeyboardInterrupt: when a signal has come and the run still goes on.
    """
    if _heard:
        raise KeyboardInterrupt


def _tell_unless_interrupted(unraisable: Any) -> None:
    """Say nothing of an interruption that came in a finalizer, which `stop_if_interrupted` raises again.

    Nor of a signal after the first, which Python tells as an error where both came before it could look.
    """
    in_finalizer = _heard and issubclass(unraisable.exc_type, KeyboardInterrupt)
    ignored = issubclass(unraisable.exc_type, OSError) and "race condition" in str(unraisable.exc_value)
    if not (in_finalizer or ignored):
        sys.__unraisablehook__(unraisable)


@contextmanager
def interruption_as_one_line() -> Iterator[None]:
    """End an interruption of whatever is under way, imports among it, as one line and exit status 130.

    Once the block has ended, everything is said and written: what is left of the process is not interrupted.
    """
    sys.unraisablehook = _tell_unless_interrupted
    try:
        with termination_as_interrupt():
            yield
    except KeyboardInterrupt:
        if torchrun.rank() == 0:
            print("error: interrupted", file=sys.stderr)
        sys.exit(130)
    finally:
        for one in _ENDING:
            signal.signal(one, signal.SIG_IGN)
