"""The command line as a user types it: for the lines that say what to type next, and for Hydra, which sees its own.

The folder of `--config-dir` is an override among the others within this project, so that every process that composes,
a job's or torchrun's, has it.
"""

from __future__ import annotations

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


def command(overrides: Iterable[str], *flags: str) -> str:
    """The line that has `overrides` run."""
    words = ["python", "-m", "pipeline", *flags]
    for text in overrides:
        found = re.fullmatch(rf"{re.escape(_KEY)}\[(['\"])file://(.*)\1\]", text)
        words += [FLAG, re.sub(r"\\(.)", r"\1", found[2])] if found else [text]
    return shlex.join(words)
