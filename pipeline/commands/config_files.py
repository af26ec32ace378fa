"""The YAML of conf/, looked at before Hydra expands it.

A few lines of YAML can stand for gigabytes once their aliases are expanded, and YAML nested deep enough ends the
parser. What conf/ needs is neither, so neither is read.
"""

from __future__ import annotations

from pathlib import Path

import yaml

from pipeline.host.errors import UserError

_MOST_BYTES, _DEEPEST = 100_000, 20
_PARSER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # the one in C takes a tenth of the time


def check_config_files(folder: Path) -> None:
    """Refuse files that are too large, that are no YAML, that nest too deeply or that hold aliases.

    Raises:
        UserError: for the first, with its path.
    """
    for path in sorted(folder.rglob("*.yaml")):
        try:
            if path.stat().st_size > _MOST_BYTES:
                raise UserError(f"{path}: {path.stat().st_size} bytes; allowed: {_MOST_BYTES} in a file of settings")
            _check(path, path.read_text(encoding="utf-8"))
        except OSError as error:
            raise UserError(f"{path}: cannot be read: {error.strerror}") from error
        except UnicodeDecodeError as error:
            raise UserError(f"{path}: cannot be read: not UTF-8 at byte {error.start}") from error
        except yaml.YAMLError as error:
            raise UserError(f"{path}: cannot be read as YAML: {error}") from error


def _check(path: Path, text: str) -> None:
    depth = 0
    for event in yaml.parse(text, Loader=_PARSER):
        if isinstance(event, yaml.AliasEvent):
            line = event.start_mark.line + 1
            raise UserError(f"{path}: line {line}: alias *{event.anchor}; allowed: settings without aliases")
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > _DEEPEST:
            raise UserError(f"{path}: nested too deeply; allowed: {_DEEPEST} levels")
