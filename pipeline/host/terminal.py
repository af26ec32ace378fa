"""What the user sees while it runs: progress bars on a terminal, plain lines elsewhere."""

from __future__ import annotations

import contextlib
import logging
import sys
import warnings
from collections.abc import Iterator
from typing import IO, Any

from tqdm import tqdm

_muted = False


def mute() -> None:
    """Say nothing from here on: another process speaks for this one."""
    global _muted
    _muted = True


def bar(description: str, total: int, unit: str = "it") -> tqdm[Any]:
    """A progress bar on standard error that leaves no trace; silent where that is no terminal."""
    return tqdm(
        desc=description,
        total=total,
        unit=unit,
        leave=False,
        disable=_muted or not sys.stderr.isatty(),
        dynamic_ncols=True,
    )


@contextlib.contextmanager
def quietly() -> Iterator[None]:
    """Without what libraries log within the block, and warn of: parts of theirs that nobody asked for."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def download_bar(stream: IO[bytes], name: str, length: str | None) -> Any:
    """`stream`, wrapped so that what is written to it moves a bar of bytes."""
    total = int(length) if length else None
    return tqdm.wrapattr(
        stream, "write", total=total, desc=name, leave=False, disable=_muted or not sys.stderr.isatty()
    )


def epoch_line(text: str) -> None:
    """One line an epoch on standard error, above any bar."""
    _write(text, sys.stderr)


def say(text: str) -> None:
    """One line on standard output, above any bar."""
    _write(text, sys.stdout)


def warn(text: str) -> None:
    """One line on standard error about something that the user should know."""
    _write(f"warning: {text}", sys.stderr)


def _write(text: str, stream: IO[str]) -> None:
    if not _muted:
        # The name of a file may hold what would steer the terminal.
        shown = "".join(one if one.isprintable() or one in "\n\t" else ascii(one)[1:-1] for one in text)
        tqdm.write(shown, file=stream)
        stream.flush()
