"""Files: their hash, their folder within the project, and writing that is complete or absent."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import secrets
from collections.abc import Iterator
from pathlib import Path

from pipeline.errors import UserError
from pipeline.interruption import deferred

PROJECT_ROOT = Path(__file__).resolve().parents[1]


def in_project(path: str) -> Path:
    """`path`, resolved against the project root wherever the command is typed."""
    return (PROJECT_ROOT / expand_user(path)).resolve()


def expand_user(path: str) -> Path:
    """`path` with the home folder that a `~` at its beginning stands for.

    Raises:
        UserError: when there is no such user.
    """
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        raise UserError(f"{path}: there is no such user's home folder; ./{path} is a folder of that name") from error


def sha256(path: Path) -> str:
    """The hexadecimal SHA-256 of a file's content."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


@contextlib.contextmanager
def write_and_rename(path: Path) -> Iterator[Path]:
    """Give a temporary path beside `path`; once the block ends without error, rename it to `path`.

    Raises:
        UserError: when the disk is full.
    """
    # Not by the process alone: on a shared file system another machine has a process of the same number.
    temporary = path.with_name(f"{path.name}.{os.getpid()}-{secrets.token_hex(4)}.tmp")
    try:
        yield temporary
        os.replace(temporary, path)
    except (OSError, RuntimeError) as error:
        if _is_full(error):
            raise UserError(f"{path}: the disk is full; once there is space, the same command goes on") from error
        raise
    finally:
        temporary.unlink(missing_ok=True)


def _is_full(error: BaseException | None) -> bool:
    """Whether an error comes of a full disk or quota; torch.save hides it behind one of its own."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            return True
        error = error.__cause__ or error.__context__
    return False


def save_tensors(content: object, path: Path) -> None:
    """`torch.save`, complete or absent, and with the same bytes wherever and by whomever it is written.

    Given a path, torch names the archive inside after it; given a stream, always the same.
    """
    import torch  # not needed by those who only handle paths

    with deferred(), write_and_rename(path) as temporary, temporary.open("wb") as stream:
        torch.save(content, stream)


def make_writable_folder(path: Path, key: str) -> Path:
    """Create a folder and see that it can be written to.

    Raises:
        UserError: naming `key` and the reason, when it cannot.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
        probe = path / f".writable-{os.getpid()}-{secrets.token_hex(4)}"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise UserError(f"{key}={path}: cannot be written: {error.strerror}") from error
    return path
