"""How often and how long a store is asked: a server that is away is noticed in seconds, and waited for elsewhere."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TypeVar

from pipeline.host import terminal
from pipeline.host.errors import UserError
from pipeline.settings.store_address import is_server

_FEW = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2", "MLFLOW_HTTP_REQUEST_TIMEOUT": "10"}
# Of a run that goes on, whose outbox tries again by itself. A large file may take its time.
_ONCE = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "30",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
}
_ASK_EVERY_S = 2.0

Answer = TypeVar("Answer")


class ServerAway(UserError):
    """A tracking server does not answer, or says that it cannot now; or another process has the store's file locked."""


def waiting(uri: str, patience_s: float, ask: Callable[[], Answer]) -> Answer:
    """What `ask` gives, asked again while the store is away, for at most `patience_s`.

    Raises:
        ServerAway: when it is away for longer.
        UserError: what `ask` raises.
    """
    deadline, told = time.monotonic() + patience_s, False
    while True:
        try:
            return ask()
        except ServerAway:
            left = deadline - time.monotonic()
            if left <= 0:
                raise
            if not told:
                why = (
                    f"the tracking server {uri} is away" if is_server(uri) else f"{uri}: another process has it locked"
                )
                terminal.warn(f"{why}: waits for it, up to {left:.0f} s")
                told = True
            time.sleep(min(_ASK_EVERY_S, left))


@contextmanager
def few_retries() -> Iterator[None]:
    """Let a server that is not there be noticed in seconds, before any work, instead of in minutes."""
    with variables({variable: os.environ.get(variable, value) for variable, value in _FEW.items()}):
        yield


@contextmanager
def one_try() -> Iterator[None]:
    """Ask once: for what must not be done twice, where an answer that comes too late would be asked for again."""
    with variables(_ONCE):
        yield


@contextmanager
def variables(values: Mapping[str, str]) -> Iterator[None]:
    before = {variable: os.environ.get(variable) for variable in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for variable, value in before.items():
            if value is None:
                os.environ.pop(variable, None)
            else:
                os.environ[variable] = value


def no_retries() -> None:
    """For the rest of the process, let a request that fails fail at once: whoever sends tries again by itself."""
    for variable, value in _ONCE.items():
        os.environ.setdefault(variable, value)
