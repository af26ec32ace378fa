"""The one exception for what a user can get wrong, and the suggestion that goes with it.

Everything a user can mistype, misplace or not have ends as one `UserError`: one line that names the
key, the value, what is allowed and the nearest right name. The entry point prints it without a
traceback and exits with status 2. Broken invariants are asserts and keep their traceback.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable

# What a terminal still shows at a glance; a path of the longest length that there is would fill it many times.
_LONGEST_WORD, _LONGEST_LINE = 300, 900


class UserError(Exception):
    """A mistake of the user, told in one line."""


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
    """`text` as one line for a terminal: what cannot be printed escaped, what is endless cut in its middle."""
    joined = " ".join(line.strip() for line in text.splitlines() if line.strip())
    printable = "".join(one if one.isprintable() else ascii(one)[1:-1] for one in joined)
    words = re.sub(r"\S+", lambda word: _cut(word[0], _LONGEST_WORD), printable)
    return _cut(words, _LONGEST_LINE)


def _cut(text: str, longest: int) -> str:
    return text if len(text) <= longest else f"{text[: longest // 2]} … {text[-longest // 2 :]}"
