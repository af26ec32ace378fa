"""What a tracking store refuses: told in one line, and waited for where it may pass."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from pipeline.host import terminal
from pipeline.host.errors import UserError
from pipeline.host.faults import fault
from pipeline.settings.store_address import is_server

CREDENTIALS = "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD"
_ASK_EVERY_S = 1.0
# MLflow calls it a bad request when its connection to the database breaks.
_DATABASE_AWAY = re.compile(r"\b(InterfaceError|OperationalError|PendingRollbackError)\b")
_INNERMOST = re.compile(r"(\[Errno [^\"')]*|[Rr]ead timed out)")

Answer = TypeVar("Answer")


class ServerAway(UserError):
    """A tracking server does not answer, or says that it cannot now; or another process has the store's file locked."""


@contextmanager
def asking(uri: str, what: str) -> Iterator[None]:
    """Let whatever a store refuses in this block end as one line that says `what` could not be done.

    Raises:
        UserError: ServerAway for a server that is away or busy, or a file that another process has locked.
    """
    from mlflow.exceptions import MlflowException

    try:
        yield
    except Exception as error:
        # As it opens a store, MLflow lets through what the libraries below it raise.
        of_database = type(error).__module__.startswith(("sqlalchemy.", "alembic."))
        if not (isinstance(error, MlflowException) or of_database):
            raise
        if is_locked(error):
            raise ServerAway(f"tracking.uri={uri}: {what}: another process has it locked") from error
        if not is_server(uri):
            why = fault(error) or next(iter(str(error).splitlines()), "")
            raise UserError(f"tracking.uri={uri}: {what}: {why}") from error
        status = http_status(error)
        if status in (401, 403):
            raise UserError(
                f"tracking.uri={uri}: {what}: the server refuses the user and password (HTTP {status}): set "
                f"{CREDENTIALS} in the environment to those of a user who may write there"
            ) from error
        if may_pass(status):
            raise ServerAway(f"tracking.uri={uri}: {what}: the server is away: {reason(error)}") from error
        raise UserError(f"tracking.uri={uri}: {what}: {reason(error)}") from error


def waiting(place: object, patience_s: float, ask: Callable[[], Answer]) -> Answer:
    """What `ask` gives, asked again while the store at `place` is away or locked, for at most `patience_s`.

    Raises:
        Exception: what `ask` raises.
    """
    deadline, told = time.monotonic() + patience_s, False
    while True:
        try:
            return ask()
        except Exception as error:
            left = deadline - time.monotonic()
            if left <= 0 or not (isinstance(error, ServerAway) or is_locked(error)):
                raise
            if not told:
                away = is_server(str(place))
                why = f"the tracking server {place} is away" if away else f"{place}: another process has it locked"
                terminal.warn(f"{why}: waits for it, up to {left:.0f} s")
                told = True
            time.sleep(min(_ASK_EVERY_S, left))


def is_locked(error: BaseException) -> bool:
    """Whether SQLite, or whoever passes on what it says, gave up because another process is writing."""
    return "database is locked" in str(error)


def http_status(error: BaseException) -> int | None:
    """What a server answered when it refused; 500 also where it did not answer, None where no server was asked."""
    import requests
    from mlflow.exceptions import MlflowException

    if isinstance(error, requests.HTTPError) and error.response is not None:
        return int(error.response.status_code)
    if isinstance(error, MlflowException):
        return 503 if _DATABASE_AWAY.search(str(error)) else int(error.get_http_status_code())
    return 500 if isinstance(error, requests.RequestException) else None


def may_pass(status: int | None) -> bool:
    """Whether a refusal may be gone later: the server is away or busy, or does not know the user."""
    return status is not None and (status in (401, 403, 408, 429) or status >= 500)


def in_the_way(uri: str, error: Exception) -> str:
    """Why a server does not take what a run says, in a few words."""
    status = http_status(error)
    if status in (401, 403):
        return f"the tracking server {uri} refuses the user and password (HTTP {status}); they come from {CREDENTIALS}"
    if status is None:
        return f"the tracking server {uri} cannot be told: {reason(error)}"
    return f"the tracking server {uri} is away"


def reason(error: BaseException) -> str:
    """What an error says, in one short line."""
    text = " ".join(str(error).split()) or type(error).__name__
    innermost = _INNERMOST.search(text)
    return (innermost[1] if innermost else text)[:300]
