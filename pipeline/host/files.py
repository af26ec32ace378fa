"""Files: their hash, what a path that is typed means, and writing that is complete or absent."""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import secrets
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pipeline.host.errors import UserError
from pipeline.host.faults import FULL, fault
from pipeline.host.interruption import deferred

# Of what torch says where it refuses to unpickle something.
_OBJECT = re.compile(r"Unsupported (?:global|class): (?:GLOBAL )?([\w.]+)")
# What holds the package: the checkout, or the folder that it is installed into.
PROJECT_ROOT = Path(__file__).resolve().parents[2]


def how_to_install(extra: str) -> str:
    """What brings an optional dependency of this project: in a checkout, or beside an installed wheel."""
    in_checkout = (PROJECT_ROOT / "pyproject.toml").is_file()
    return f"pip install -e '.[{extra}]'" if in_checkout else f"pip install 'qat_pipeline-….whl[{extra}]'"


def resolved(path: str) -> Path:
    """`path` as an absolute one: a relative one counts from the working directory, `~` is the user's home."""
    return Path(os.path.expanduser(path)).resolve()


def shown(path: Path) -> str:
    """`path` as it is typed from here: relative where it lies below the working directory."""
    here = Path.cwd()
    return str(path.relative_to(here) if path.is_relative_to(here) else path)


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
        if (fault(error) or "").endswith(FULL):
            raise UserError(f"{path}: {FULL}") from error
        raise
    finally:
        temporary.unlink(missing_ok=True)


def check_space(folder: Path) -> None:
    """See that a megabyte can be written: other libraries say of a full disk whatever they like.

    Raises:
        OSError: when the disk is full.
    """
    with tempfile.TemporaryFile(dir=folder) as stream:
        stream.write(bytes(1_000_000))


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
        tempfile.TemporaryFile(dir=path).close()
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
