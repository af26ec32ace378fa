"""The one exception for what a user can get wrong, and the suggestion that goes with it.

Everything a user can mistype, misplace or not have ends as one `UserError`: one line that names the
key, the value, what is allowed and the nearest right name. The entry point prints it without a
traceback and exits with status 2. Broken invariants are asserts and keep their traceback.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable

# What a terminal still shows at a glance; a path of the longest length that there is would fill it many times.
_LONGEST_WORD = 300


class UserError(Exception):
    """A mistake of the user, told in one line."""


class UserCodeError(UserError):
    """What the user's own code raised. The traceback of its cause is of use to them, and is shown below the line."""


class ProcessLost(Exception):
    """Another process of the same run has ended: it said why itself, or was killed."""


class SubmissionError(UserError):
    """Why the jobs of a sweep cannot be started at all; what a single job raises is that job's affair."""


def nearest(name: str, allowed: Iterable[str]) -> str | None:
    """The allowed name most like `name` (case is ignored), or None when nothing is alike."""
    by_folded = {candidate.lower(): candidate for candidate in allowed}
    matches = difflib.get_close_matches(name.lower(), by_folded, n=1, cutoff=0.5)
    return by_folded[matches[0]] if matches else None


def suggestion(name: str, allowed: Iterable[str]) -> str:
    """The tail of an error line: what is allowed, and the nearest of it to `name`."""
    allowed = list(allowed)
    close = nearest(name, allowed)
    hint = f"; did you mean '{close}'?" if close else ""
    return f"allowed: {', '.join(allowed)}{hint}"


def presentable(text: str) -> str:
    """`text` as one line for a terminal: what cannot be printed escaped, a word that is endless cut in its middle."""
    words = "".join(one if one.isprintable() or one.isspace() else ascii(one)[1:-1] for one in text).split()
    half = _LONGEST_WORD // 2
    return " ".join(word if len(word) <= _LONGEST_WORD else f"{word[:half]} … {word[-half:]}" for word in words)


def first_line(error: BaseException) -> str:
    """The first line of what an exception says, or else its name."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
