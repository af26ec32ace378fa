"""`python -m pipeline.outbox`: send what runs could not tell a tracking server that was away."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from pipeline.commands.command_line import Parser, run_command, tell_error
from pipeline.host.errors import UserError, presentable
from pipeline.host.files import resolved

_OUTPUTS = "outputs"
_EPILOG = """examples:
  python -m pipeline.outbox                          # of every run that was for the configured server
  python -m pipeline.outbox --outputs /data/outputs
  python -m pipeline.outbox --tracking-uri http://127.0.0.1:5001   # to another one, or the server has moved

The configured server is MLFLOW_TRACKING_URI, or http://127.0.0.1:5000 where that is not set; no other is told the user
and password (MLFLOW_TRACKING_USERNAME, MLFLOW_TRACKING_PASSWORD) unless it is named here. What the server refused
before is tried once more; a run whose process was killed becomes KILLED.
"""


def main() -> None:
    """The command `python -m pipeline.outbox`; its exit status is 1 when something is left."""
    run_command(lambda: _run(_parser().parse_intermixed_args()))


def _parser() -> Parser:
    parser = Parser(
        prog="python -m pipeline.outbox",
        description="Send what runs could not tell a tracking server that was away.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("run_ids", nargs="*", metavar="RUN_ID", help="of these runs alone (default: of every run)")
    parser.add_argument("--outputs", default=_OUTPUTS, help="the folder of the runs (default: %(default)s)")
    parser.add_argument("--tracking-uri", help="the server to send to, where it is not the configured one")
    return parser


def _run(arguments: argparse.Namespace) -> None:
    # Slow to import, and not needed for --help.
    from pipeline.tracking.leftovers import send_leftovers

    outputs: Path = resolved(arguments.outputs)
    if not outputs.is_dir() and arguments.outputs != _OUTPUTS:  # misspelt, and nothing would be sent
        raise UserError(f"--outputs={arguments.outputs}: {outputs} is no folder; allowed: a folder of runs")
    done = send_leftovers(outputs, arguments.run_ids, arguments.tracking_uri)
    if not done:
        print(f"nothing is kept in {outputs / 'outbox'}")
    for one in done:
        ended = f", {one.status}" if one.status and not one.left else ""
        counts = f"{one.sent} sent, {one.left} left, {one.refused} refused{ended}"
        print(f"{presentable(one.name)} ({presentable(one.run_id)}): {counts}", flush=True)
        if one.refused:
            folder = outputs / "outbox" / one.run_id
            tell_error(f"{one.name}: what is not sent, and why, is in {folder}/refused.jsonl; delete it to forget it")
        if one.in_the_way:
            tell_error(f"{one.name}: {one.in_the_way}")
    if any(one.left or one.refused or one.in_the_way for one in done):
        sys.exit(1)


if __name__ == "__main__":
    main()
