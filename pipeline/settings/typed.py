"""The command line as a user types it: for the lines that say what to type next, and for Hydra, which sees its own.

The folder of `--config-dir` is an override among the others within this project, so that every process that composes,
a job's or torchrun's, has it.
"""

from __future__ import annotations

import hashlib
import re
import shlex
from collections.abc import Iterable
from pathlib import Path

FLAG = "--config-dir"
_KEY = "hydra.searchpath="


def of_config_dir(folder: Path) -> str:
    """The override that has Hydra look for YAML in `folder` too."""
    quoted = str(folder).replace("\\", "\\\\").replace("'", "\\'")
    return f"{_KEY}['file://{quoted}']"


def is_for_hydra(override: str) -> bool:
    """Whether an override says how jobs are composed or launched, and nothing of a run itself."""
    return override.startswith(("hydra", "+hydra"))


def config_dirs(overrides: Iterable[str]) -> list[str]:
    """Those of `overrides` that `of_config_dir` made."""
    return [text for text in overrides if text.startswith(_KEY)]


def command(overrides: Iterable[str], *flags: str, module: str = "pipeline") -> str:
    """The line that has `overrides` run."""
    words = ["python", "-m", module, *flags]
    for text in overrides:
        folder = _folder_of(text)
        words += [text] if folder is None else [FLAG, folder]
    return shlex.join(words)


def config_dirs_content(overrides: Iterable[str]) -> str:
    """A hash of all YAML in the folders of `--config-dir`, empty without one: what is composed may change with it."""
    folders = [folder for folder in map(_folder_of, overrides) if folder is not None]
    found = hashlib.sha256()
    for path in sorted(path for folder in folders for path in Path(folder).rglob("*.yaml")):
        found.update(path.read_bytes())
    return found.hexdigest() if folders else ""


def _folder_of(override: str) -> str | None:
    """The folder of an override that `of_config_dir` made."""
    found = re.fullmatch(rf"{re.escape(_KEY)}\[(['\"])file://(.*)\1\]", override)
    return None if found is None else re.sub(r"\\(.)", r"\1", found[2])
