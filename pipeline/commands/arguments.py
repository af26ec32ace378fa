"""The command line as Hydra's flags and overrides; what there is not, or leads past the checks, is refused."""

from __future__ import annotations

import argparse
import sys
from typing import NoReturn

from hydra._internal.utils import get_args_parser

from pipeline.host.errors import UserError, suggestion

_FLAGS = ["--multirun", "-m", "--cfg", "--help", "--hydra-help", "--info", "--resolve", "--package"]
# The checks of every run and job know conf/ alone, and a pickle executes what it holds when it is read.
_REFUSED_FLAGS = {
    "config_path": "allowed: groups and experiments in conf/",
    "config_name": "allowed: +experiment=… of conf/experiment/",
    "config_dir": "allowed: groups and experiments in conf/",
    "experimental_rerun": "it reads a pickle, which is never unpickled here; allowed: the overrides of the run",
}


def read_arguments() -> argparse.Namespace:
    """Flags and overrides of the command line, wherever the flags stand.

    Hydra reads the command line once more, and takes flags in one place alone: there it then has them.

    Raises:
        UserError: for a flag that there is not, that is not to be had here, or that does not go with another.
    """
    parser = get_args_parser()
    parser.error = _refuse_arguments  # type: ignore[method-assign, assignment]
    arguments = parser.parse_intermixed_args()
    for name, allowed in _REFUSED_FLAGS.items():
        if getattr(arguments, name) is not None:
            raise UserError(f"--{name.replace('_', '-')}={getattr(arguments, name)}: {allowed}")
    doing = ("run", "multirun", "cfg", "info", "shell_completion")
    if sum(bool(getattr(arguments, name)) for name in doing) > 1:
        raise UserError(f"allowed: one of {', '.join('--' + name.replace('_', '-') for name in doing)}")
    if arguments.resolve and not (arguments.cfg or arguments.help):
        raise UserError("--resolve: allowed: with --cfg or --help")
    sys.argv[1:] = [*_flags(parser, arguments), *arguments.overrides]
    return arguments


def _flags(parser: argparse.ArgumentParser, arguments: argparse.Namespace) -> list[str]:
    """The flags that were typed."""
    typed = []
    for action in parser._actions:
        value = getattr(arguments, action.dest, None) if action.option_strings else None
        if value:
            typed.append(action.option_strings[0] if value is True else f"{action.option_strings[0]}={value}")
    return typed


def _refuse_arguments(message: str) -> NoReturn:
    """What argparse cannot read, in one line instead of its usage."""
    unknown = message.removeprefix("unrecognized arguments: ").split(" ")[0]
    hint = suggestion(unknown, _FLAGS) if unknown.startswith("-") else "allowed: flags and key=value"
    raise UserError(f"{message}; {hint}")
