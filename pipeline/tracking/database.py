"""A store that is a SQLite file: whether it is MLflow's and whole, and waiting for another process that has it locked.

MLflow itself tries a file that is no database for minutes, and writes its tables into another program's.
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import TypeVar

from pipeline.host import terminal
from pipeline.host.errors import UserError

_TABLES = {"alembic_version", "experiments", "runs"}
_TRY_S = 2.0

Answer = TypeVar("Answer")


def check_database(uri: str, database: Path, patience_s: float) -> None:
    """See that a file, if there is one, is a database of MLflow's that can be read; waits for one that is locked.

    Args:
        uri: of the store, for the error.
        database: the file.
        patience_s: how long another process may have it locked.

    Raises:
        UserError: when it is none, or stays locked.
    """
    if not database.exists():
        return
    try:
        tables = while_locked(database, patience_s, lambda: _tables(database))
    except sqlite3.Error as error:
        if is_locked(error):
            raise UserError(
                f"tracking.uri={uri}: another process has it locked, for more than {patience_s:.0f} s; once that lets "
                "go of it, the same command goes on"
            ) from error
        if isinstance(error, sqlite3.OperationalError) and not database.is_dir():
            raise  # the disk's, or of a file that may not be read
        raise UserError(_none(uri, "it is a folder" if database.is_dir() else str(error))) from error
    if not database.stat().st_size:
        raise UserError(_none(uri, "it is empty"))
    if not tables >= _TABLES:
        raise UserError(_none(uri, f"it has no table '{min(_TABLES - tables)}'"))


def _none(uri: str, why: str) -> str:
    return (
        f"tracking.uri={uri}: no database of MLflow's, or a damaged one: {why}; allowed: one that MLflow made, or "
        "none, which the next run makes"
    )


def _tables(database: Path) -> set[str]:
    # To be written: of a process that was killed there may be something to roll back.
    with closing(sqlite3.connect(f"{database.as_uri()}?mode=rw", uri=True, timeout=_TRY_S)) as store:
        return {name for (name,) in store.execute("select name from sqlite_master where type = 'table'")}


def is_locked(error: BaseException) -> bool:
    """Whether SQLite, or whoever passes on what it says, gave up because another process is writing."""
    return "database is locked" in str(error)


def while_locked(database: object, patience_s: float, ask: Callable[[], Answer]) -> Answer:
    """What `ask` gives, asked again while another process has the database locked, for at most `patience_s`.

    Raises:
        Exception: what `ask` raises.
    """
    deadline, told = time.monotonic() + patience_s, False
    while True:
        try:
            return ask()
        except Exception as error:
            left = deadline - time.monotonic()
            if not is_locked(error) or left <= 0:
                raise
            if not told:
                terminal.warn(f"{database}: another process has it locked: waits for it, up to {left:.0f} s")
                told = True
            time.sleep(min(0.2, left))
