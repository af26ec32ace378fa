"""What the commands beside `python -m pipeline` share: a mistake ends as one line and exit status 2."""

from __future__ import annotations

import argparse
import faulthandler
import io
import os
import re
import sys
import time
import traceback
from collections.abc import Callable
from typing import NoReturn

from pipeline.host import torchrun
from pipeline.host.errors import UserCodeError, UserError, presentable, suggestion
from pipeline.host.faults import told
from pipeline.host.redaction import mask_text

_UNTIL_RANK_0_SPEAKS_S = 60
INTERRUPTED = 130
# What a terminal has no letter for: a class, a file, a message of another language.
_ESCAPED = "backslashreplace"


class Parser(argparse.ArgumentParser):
    """Refuses with one line instead of its usage."""

    def error(self, message: str) -> NoReturn:
        unknown = message.removeprefix("unrecognized arguments: ").split(" ")[0]
        flags = [flag for action in self._actions for flag in action.option_strings]
        hint = f"; {suggestion(unknown, flags)}" if unknown.startswith("-") else ""
        if kind := re.search(r": invalid (int|float) value: ", message):
            hint = f"; allowed: {'a whole number' if kind[1] == 'int' else 'a number'}"
        raise UserError(f"{message}{hint}")


def begin() -> None:
    """Take from the environment what a command, and the processes that it starts, must not depend on."""
    # Plots are files. A notebook's kernel names its own backend, without which matplotlib cannot be imported.
    os.environ.pop("MPLBACKEND", None)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors=_ESCAPED)
            os.environ["PYTHONIOENCODING"] = f"{stream.encoding}:{_ESCAPED}"
    if isinstance(sys.stderr, io.TextIOWrapper) and not faulthandler.is_enabled():
        faulthandler.enable(sys.stderr, all_threads=False)  # a library that crashes says where


def run_command(command: Callable[[], None]) -> None:
    """Run a command to its end, or to the line that says what is wrong."""
    begin()
    try:
        with told():
            command()
    except UserError as error:
        tell_error(error)
        sys.exit(2)
    except KeyboardInterrupt:
        tell_error("interrupted")
        sys.exit(INTERRUPTED)


def fail(message: object, status: int) -> NoReturn:
    """Say what is wrong, and end with `status`."""
    if torchrun.rank() > 0:
        if status == INTERRUPTED:  # rank 0, which says so, may wait for this process to end
            sys.exit(status)
        # Rank 0 has most likely found the same and says it, unless this process ends first: torchrun then ends all.
        time.sleep(_UNTIL_RANK_0_SPEAKS_S)
        message = f"process {torchrun.rank()}: {message}"
    tell_error(message)
    sys.exit(status)


def tell_error(error: object) -> None:
    """One line on standard error; below it the traceback of the user's own code, where that raised."""
    print(f"error: {presentable(mask_text(str(error)))}", file=sys.stderr, flush=True)
    if isinstance(error, UserCodeError) and error.__cause__ is not None:
        cause = error.__cause__
        trace = cause.__traceback__
        while trace is not None and trace.tb_frame.f_globals.get("__name__", "").startswith("pipeline."):
            trace = trace.tb_next  # ours tells them nothing
        traceback.print_exception(type(cause), cause, trace, file=sys.stderr)
