"""A store that is a SQLite file: whether it is MLflow's and whole.

MLflow itself tries a file that is no database for minutes, and writes its tables into another program's.
"""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

from pipeline.host.errors import UserError
from pipeline.tracking.failures import is_locked, waiting

SQLITE = "sqlite:///"
_TABLES = {"alembic_version", "experiments", "runs"}
_TRY_S = 2.0


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
    why = ""
    try:
        tables = waiting(database, patience_s, lambda: _tables(database))
        if not database.stat().st_size:
            why = "it is empty"
        elif not tables >= _TABLES:
            why = f"it has no table '{min(_TABLES - tables)}'"
    except sqlite3.Error as error:
        if is_locked(error):
            raise UserError(
                f"tracking.uri={uri}: another process has it locked, for more than {patience_s:.0f} s; once that lets "
                "go of it, the same command goes on"
            ) from error
        if isinstance(error, sqlite3.OperationalError) and not database.is_dir():
            raise  # the disk's, or of a file that may not be read
        why = "it is a folder" if database.is_dir() else str(error)
    if why:
        raise UserError(
            f"tracking.uri={uri}: no database of MLflow's, or a damaged one: {why}; allowed: one that MLflow made, or "
            "none, which the next run makes"
        )


def _tables(database: Path) -> set[str]:
    # To be written: of a process that was killed there may be something to roll back.
    with closing(sqlite3.connect(f"{database.as_uri()}?mode=rw", uri=True, timeout=_TRY_S)) as store:
        return {name for (name,) in store.execute("select name from sqlite_master where type = 'table'")}
