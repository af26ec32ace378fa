"""What is typed behind `python -m pipeline`: flags, and the overrides that Hydra composes."""

from __future__ import annotations

import argparse
from pathlib import Path

from pipeline.commands.command_line import Parser
from pipeline.host.errors import UserError, nearest
from pipeline.host.files import resolved
from pipeline.settings import typed


def read_arguments(project: Path) -> argparse.Namespace:
    """Flags and overrides of the command line, wherever the flags stand; that of `--config-dir` first.

    Args:
        project: the folder of the project's own YAML, whose names another may not have.

    Raises:
        UserError: for a flag that there is not, or that does not go with another.
    """
    parser = Parser(add_help=False, allow_abbrev=False)
    parser.add_argument("overrides", nargs="*")
    parser.add_argument("--help", "-h", action="store_true")
    parser.add_argument("--hydra-help", action="store_true")
    parser.add_argument("--resolve", action="store_true")
    one_of = parser.add_mutually_exclusive_group()
    one_of.add_argument("--multirun", "-m", action="store_true")
    one_of.add_argument("--cfg", "-c", choices=["job", "hydra", "all"])
    parser.add_argument("--config-dir", "-cd")
    arguments = parser.parse_intermixed_args()
    if arguments.config_dir is not None:
        arguments.overrides.insert(0, of_config_dir(arguments.config_dir, project))
    return arguments


def flags_in_front(arguments: argparse.Namespace) -> list[str]:
    """The flags for Hydra, which reads the command line once more, and takes flags in front of overrides alone."""
    given = [f"--{name.replace('_', '-')}" for name, value in vars(arguments).items() if value is True]
    return [*given, "--cfg", arguments.cfg] if arguments.cfg else given


def of_config_dir(given: str, project: Path) -> str:
    """The override that stands for `--config-dir`.

    Raises:
        UserError: when the folder is not there, or hides behind what the project has.
    """
    return typed.of_config_dir(_checked_config_dir(given, project))


def _checked_config_dir(given: str, project: Path) -> Path:
    """The user's own folder of YAML.

    Raises:
        UserError: when it is not there, or hides behind what the project has.
    """
    folder, key = resolved(given), f"{typed.FLAG} {given}"
    if not folder.is_dir():
        beside = [path.name for path in folder.parent.iterdir() if path.is_dir()] if folder.parent.is_dir() else []
        close = nearest(folder.name, beside)
        raise UserError(f"{key}: no such folder" + (f"; did you mean '{close}'?" if close else ""))
    # As deep as hydra/launcher/NAME.yaml: it may be the root of a disk.
    found = (path for depth in ("", "*/", "*/*/") for path in sorted(folder.glob(f"{depth}*.y*ml")))
    files = [path.relative_to(folder) for path in found]
    if not files:
        raise UserError(f"{key}: no YAML in it; allowed: experiment/NAME.yaml, model/NAME.yaml and such, as in conf/")
    for file in files:
        if file.suffix != ".yaml":
            raise UserError(f"{key}: {file} is not read; allowed: {file.with_suffix('.yaml')}")
        if (project / file).exists():
            raise UserError(f"{key}: {file} has the name of one of the project's; allowed: another name")
    return folder
