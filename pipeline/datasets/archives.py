"""Fetching the official archives of a data set, each checked against the MD5 that torchvision states.

`dataset.mirror` (or the environment variable `DATASET_MIRROR`), an http(s) base URL or a local folder,
is tried before torchvision's own mirrors.
"""

from __future__ import annotations

import http.client
import os
import shutil
import urllib.error
import urllib.request
from collections.abc import Sequence
from pathlib import Path

from filelock import FileLock

from pipeline.host import terminal
from pipeline.host.errors import UserError
from pipeline.host.files import make_writable_folder, resolved, write_and_rename
from pipeline.host.redaction import refuse_credentials
from pipeline.settings.config import DatasetConfig

MIRROR_VARIABLE = "DATASET_MIRROR"
_TIMEOUT_S = 30


def fetch(config: DatasetConfig, folder: Path, archives: dict[str, str], mirrors: Sequence[str]) -> None:
    """Bring every archive (file name → MD5) into `folder`, from the first mirror that has it whole.

    Raises:
        UserError: when one cannot be had: which files go where, and what each mirror answered.
    """
    make_writable_folder(folder, "dataset.root")
    with locked(folder):
        for name, md5 in archives.items():
            if not is_whole(folder / name, md5):
                _fetch_one(config, folder, name, archives, mirrors)


def is_whole(file: Path, md5: str) -> bool:
    """Whether the file is there, with this MD5."""
    from torchvision.datasets.utils import check_integrity  # seconds, which other data sets need not wait for

    return check_integrity(str(file), md5)


def locked(folder: Path) -> FileLock:
    """Keeps other processes from fetching or unpacking into `folder`."""
    return FileLock(folder / ".lock")


def _fetch_one(
    config: DatasetConfig, folder: Path, name: str, archives: dict[str, str], mirrors: Sequence[str]
) -> None:
    answers = []
    if (folder / name).exists():
        answers.append(f"{folder / name}: truncated or altered (MD5 differs)")
    for base in [*_own_mirror(config), *mirrors]:
        url = base.rstrip("/") + "/" + name
        try:
            with write_and_rename(folder / name) as temporary:
                _download(url, temporary)
                if not is_whole(temporary, archives[name]):
                    raise OSError("truncated or altered (MD5 differs)")
            return
        # URLError and time-outs are OSErrors; a mistyped URL is a ValueError or an InvalidURL.
        except (OSError, ValueError, http.client.HTTPException) as error:
            reason = error.reason if isinstance(error, urllib.error.URLError) else error
            answers.append(f"{url}: {reason}")
    raise UserError(
        f"dataset={config.name}: {name} cannot be had ({'; '.join(answers)}): put {', '.join(archives)} into "
        f"{folder}, or set dataset.mirror or {MIRROR_VARIABLE} to a folder or URL that has them; "
        "dataset=digits needs no download"
    )


def _own_mirror(config: DatasetConfig) -> list[str]:
    mirror = config.mirror or os.environ.get(MIRROR_VARIABLE)
    if not mirror:
        return []
    refuse_credentials("dataset.mirror" if config.mirror else MIRROR_VARIABLE, mirror)
    return [mirror if "://" in mirror else resolved(mirror).as_uri()]


def _download(url: str, target: Path) -> None:
    with (
        urllib.request.urlopen(url, timeout=_TIMEOUT_S) as response,
        target.open("wb") as stream,
        terminal.download_bar(stream, url.rsplit("/", 1)[-1], response.headers.get("Content-Length")) as out,
    ):
        shutil.copyfileobj(response, out)
