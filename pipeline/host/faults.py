"""What the machine refuses, in one line: a full disk, a folder that is read-only, a name that is too long.

Any write of any library may meet these, so they are told in one place, around all of a run, and not at each write.
"""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager

from pipeline.host.errors import UserError

_FULL = "the disk is full; once there is space, the same command goes on"
_READ_ONLY = "the file system is read-only; once it can be written to, the same command goes on"
_MAYBE_READ_ONLY = "the file system may be read-only; once it can be written to, the same command goes on"
_NO_MEMORY = "no memory is left: a smaller batch_size needs less"
_REASONS = {
    errno.ENOSPC: _FULL,
    errno.EDQUOT: _FULL,
    errno.EROFS: _READ_ONLY,
    errno.EACCES: "permission denied",
    errno.EPERM: "not permitted",
    errno.ENAMETOOLONG: "the name is too long",
    errno.EIO: "the disk cannot be read or written (input/output error)",
    errno.EMFILE: "too many open files; ulimit -n 4096 allows more",
    errno.ENOMEM: _NO_MEMORY,
    errno.ESTALE: "the file server has lost it (stale file handle); once it is back, the same command goes on",
    errno.ETIMEDOUT: "the file server does not answer; once it does, the same command goes on",
}
_NO_GPU_MEMORY = "the GPU's memory is full: a smaller batch_size needs less"
_UNSURE = "the disk is full, or cannot be written; once it can, the same command goes on"
_DATABASE = "the database of the runs (mlflow.db, optuna.db)"
# What has messages of its own: SQLite's reach us inside those of SQLAlchemy and MLflow, C++'s come of OpenVINO, and
# torch's are RuntimeErrors, as are those of damaged files.
_WORDS = {
    "database or disk is full": f"{_DATABASE}: {_FULL}",
    "attempt to write a readonly database": f"{_DATABASE}: {_READ_ONLY}",
    # Also where no file can be made beside it.
    "unable to open database file": f"{_DATABASE}: cannot be opened or written; {_MAYBE_READ_ONLY}",
    "disk I/O error": f"{_DATABASE}: {_UNSURE}",
    "database is locked": f"{_DATABASE}: another process has it locked; once that lets go, the same command goes on",
    "database disk image is malformed": f"{_DATABASE}: it is damaged; moved away, the next run makes a new one",
    "file is not a database": f"{_DATABASE}: it is damaged; moved away, the next run makes a new one",
    "DefaultCPUAllocator: can't allocate memory": _NO_MEMORY,
    "DefaultCPUAllocator: not enough memory": _NO_MEMORY,
    "CUDA out of memory": _NO_GPU_MEMORY,
    "iostream error": f"a file of an exported model: {_UNSURE}",
}


@contextmanager
def told() -> Iterator[None]:
    """Let what the machine refuses end as one line.

    Raises:
        UserError: instead of an exception that comes of a fault of the machine; others pass.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        line = fault(error)
        if line is None:
            raise
        raise UserError(line) from error


def fault(error: BaseException | None) -> str | None:
    """The line for an exception that comes, at whatever distance, of a fault of the machine; None for others."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        if isinstance(error, OSError) and error.errno in _REASONS:
            where = f"{_text(error.filename)}: " if error.filename else ""
            return f"{where}{_REASONS[error.errno]}"
        if isinstance(error, MemoryError):
            return _NO_MEMORY
        for words, line in _WORDS.items():
            if words in str(error):
                return line
        error = error.__cause__ or error.__context__
    return None


def is_full(error: BaseException) -> bool:
    """Whether an error comes of a full disk or quota."""
    line = fault(error)
    return line is not None and line.endswith(_FULL)


def _text(name: str | bytes | int) -> str:
    return name.decode(errors="surrogateescape") if isinstance(name, bytes) else str(name)
