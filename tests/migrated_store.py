"""MLflow's tables as a file that is copied. MLflow itself makes them in each empty store, by seconds of migrations."""

from __future__ import annotations

import os
import shutil
import sqlite3
from pathlib import Path

import sqlalchemy
from filelock import FileLock

# Where the file is: for the processes too that tests start.
VARIABLE = "PIPELINE_TEST_MIGRATED_STORE"


def make(file: Path) -> None:
    """Have MLflow make its tables in `file`, once for all test processes of a session."""
    import mlflow.store.db.utils as store

    with FileLock(f"{file}.lock"):
        if not file.exists():
            engine = store.create_sqlalchemy_engine(f"sqlite:///{file}.new")
            store._initialize_tables(engine)
            engine.dispose()
            Path(f"{file}.new").rename(file)
    os.environ[VARIABLE] = str(file)


def copy_from_now_on() -> None:
    """Let MLflow find its tables in every store that is empty, copied from the file instead of made again."""
    import mlflow.store.db.utils as store

    if VARIABLE not in os.environ:
        return
    file = os.environ[VARIABLE]  # a command may be given another environment
    make_tables = store._initialize_tables

    def initialize(engine: store.sqlalchemy.engine.Engine) -> None:
        if engine.url.get_backend_name() == "sqlite" and store._is_empty_database(engine):
            engine.dispose()
            shutil.copyfile(file, engine.url.database)
        else:
            make_tables(engine)

    store._initialize_tables = initialize
    sqlalchemy.event.listen(sqlalchemy.Engine, "connect", _trust_the_machine)


def _trust_the_machine(connection: object, record: object) -> None:
    """A store of a test need not outlive a loss of power: SQLite would wait for the disk at each of many changes."""
    if isinstance(connection, sqlite3.Connection):
        connection.execute("PRAGMA synchronous=OFF")
