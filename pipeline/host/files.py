"""Files: their hash, their folder within the project, and writing that is complete or absent."""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import secrets
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pipeline.host import terminal
from pipeline.host.errors import UserError
from pipeline.host.faults import fault, is_full
from pipeline.host.interruption import deferred

# Of what torch says where it refuses to unpickle something.
_OBJECT = re.compile(r"Unsupported (?:global|class): (?:GLOBAL )?([\w.]+)")
PROJECT_ROOT = Path(__file__).resolve().parents[2]


def in_project(path: str) -> Path:
    """`path`, resolved against the project root wherever the command is typed."""
    return (PROJECT_ROOT / expand_user(path)).resolve()


def tell_folder(outputs: str) -> None:
    """Say where a relative `outputs` is, to those who typed it in another folder than the project's."""
    if outputs != "outputs" and not expand_user(outputs).is_absolute() and Path.cwd() != PROJECT_ROOT:
        terminal.say(f"outputs={outputs} is {in_project(outputs)}: relative paths count from the project's folder")


def expand_user(path: str) -> Path:
    """`path` with the home folder that a `~` at its beginning stands for.

    Raises:
        UserError: when there is no such user.
    """
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        raise UserError(f"{path}: there is no such user's home folder; ./{path} is a folder of that name") from error


def amount(size: int) -> str:
    """A number of bytes in words."""
    for unit, least in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if size >= least:
            return f"{size / least:,.1f} {unit}"
    return f"{size} B"


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
        if is_full(error):
            raise UserError(f"{path}: the disk is full; once there is space, the same command goes on") from error
        raise
    finally:
        temporary.unlink(missing_ok=True)


def check_space(folder: Path) -> None:
    """See that a megabyte can be written: other libraries say of a full disk whatever they like.

    Raises:
        UserError: when the disk is full.
    """
    with write_and_rename(folder / ".space") as temporary:
        temporary.write_bytes(bytes(1_000_000))
    (folder / ".space").unlink()


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


def load_tensors(path: Path) -> Any:
    """What `save_tensors` wrote, on the CPU; nothing in the file is executed.

    Raises:
        UserError: when the file is damaged, or holds other objects than tensors in plain containers.
    """
    import torch

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what torch says of a strange file is said below
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # damaged bytes make the unpickler raise almost anything
        if fault(error) is not None:
            raise
        named = _OBJECT.search(str(error))
        what = f"it holds {named[1]}" if named else "it is damaged, or holds objects"
        reason = f"{type(error).__name__}: {what}{', and such objects' if named else ', which'} are never unpickled"
        raise UserError(f"{path}: cannot be read ({reason})") from error
