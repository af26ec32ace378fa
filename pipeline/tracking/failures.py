"""What kind of failure it is, when a tracking server does not do what it is asked."""

from __future__ import annotations

import re

_STATUS_IN_TEXT = re.compile(r"failed with error code (\d{3})")
# MLflow calls it a bad request when its connection to the database breaks.
_DATABASE_AWAY = re.compile(r"\b(InterfaceError|OperationalError|PendingRollbackError)\b")
_INNERMOST = re.compile(r"(\[Errno [^\"')]*|[Rr]ead timed out|too many \d+ error responses)")


def http_status(error: BaseException) -> int | None:
    """What a server answered when it refused; 500 also where it did not answer, None where no server was asked."""
    response = getattr(error, "response", None)
    if response is not None:
        return int(response.status_code)
    if _DATABASE_AWAY.search(str(error)):
        return 503
    answered = _STATUS_IN_TEXT.search(str(error))
    if answered is not None:
        return int(answered[1])
    of_mlflow = getattr(error, "get_http_status_code", None)
    if of_mlflow is not None:
        return int(of_mlflow())
    # requests' own: no connection, no answer in time.
    return 500 if type(error).__module__.startswith(("requests.", "urllib3.")) else None


def is_databases(error: BaseException) -> bool:
    """Whether it is an error of the libraries below MLflow, which lets through what they raise as it opens a store."""
    return type(error).__module__.startswith(("sqlalchemy.", "alembic."))


def passes(status: int | None) -> bool:
    """Whether a refusal may be gone later: the server is away or busy, or does not know the user."""
    return status is not None and (status in (401, 403, 408, 429) or status >= 500)


def reason(error: BaseException) -> str:
    """What an error says, in one short line."""
    text = " ".join(str(error).split()) or type(error).__name__
    innermost = _INNERMOST.search(text)
    return (innermost[1] if innermost else text)[:300]
