"""What the user sees while it runs: progress bars on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
from typing import IO, Any

from tqdm import tqdm


def bar(description: str, total: int, unit: str = "it") -> tqdm[Any]:
    """A progress bar on standard error that leaves no trace; silent where that is no terminal."""
    return tqdm(
        desc=description, total=total, unit=unit, leave=False, disable=not sys.stderr.isatty(), dynamic_ncols=True
    )


def download_bar(stream: IO[bytes], name: str, length: str | None) -> Any:
    """`stream`, wrapped so that what is written to it moves a bar of bytes."""
    total = int(length) if length else None
    return tqdm.wrapattr(stream, "write", total=total, desc=name, leave=False, disable=not sys.stderr.isatty())


def epoch_line(text: str) -> None:
    """One line an epoch on standard error, above any bar."""
    tqdm.write(text, file=sys.stderr)
    sys.stderr.flush()


def say(text: str) -> None:
    """One line on standard output, above any bar."""
    tqdm.write(text, file=sys.stdout)
    sys.stdout.flush()


def warn(text: str) -> None:
    """One line on standard error about something that the user should know."""
    tqdm.write(f"warning: {text}", file=sys.stderr)
    sys.stderr.flush()
