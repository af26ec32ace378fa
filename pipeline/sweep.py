"""`python -m pipeline.sweep status`: the states of sweeps and of their jobs."""

from __future__ import annotations

from pipeline.commands.command_line import Parser, run_command
from pipeline.host import terminal
from pipeline.host.errors import UserError, suggestion
from pipeline.host.files import resolved
from pipeline.sweeps.states import Sweep, status_table


def _status() -> None:
    """`status [--outputs FOLDER] [ID …]`."""
    parser = Parser("python -m pipeline.sweep", description="The states of sweeps and their jobs.")
    parser.add_argument("action", choices=["status"])
    parser.add_argument("ids", nargs="*", metavar="ID", help="a sweep's id (default: every sweep, the newest last)")
    parser.add_argument("--outputs", default="outputs", help="the folder of the runs (default: outputs)")
    options = parser.parse_intermixed_args()
    root = resolved(options.outputs) / "sweeps"
    known = sorted(root.glob("*/sweep.json"), key=lambda path: path.stat().st_mtime)
    folders = {path.parent.name: path.parent for path in known}
    if not folders:
        raise UserError(f"--outputs={options.outputs}: no sweep in {root}; python -m pipeline -m … makes one")
    for identity in options.ids:
        if identity not in folders:
            raise UserError(f"no sweep '{identity}' in {root}; {suggestion(identity, folders)}")
    for identity in options.ids or folders:
        try:
            sweep = Sweep.load(folders[identity])
        except UserError as error:  # the others can be shown
            terminal.warn(str(error))
            continue
        print(status_table(sweep), end="\n\n")


if __name__ == "__main__":
    run_command(_status)
