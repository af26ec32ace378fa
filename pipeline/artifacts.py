"""`python -m pipeline.artifacts`: what lies in the artifact store, and removing what nothing stands on."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from pipeline.commands.command_line import Parser, run_command
from pipeline.host.errors import UserError, suggestion
from pipeline.host.files import resolved

_EPILOG = """examples:
  python -m pipeline.artifacts                       # every result: size, age, who stands on it
  python -m pipeline.artifacts prune                 # remove what no run stands on, after asking
  python -m pipeline.artifacts prune --outdated      # and what today's code and libraries would make again anyway

A run in MLflow stands on the results that it names, until the run is deleted there; so does a job of a sweep that is
not tracked. What a run under way holds is never removed. The numbers of runs stay in MLflow. Every store is asked in
which runs were tracked; outputs/artifacts/.tracked names those besides mlflow.db, and can be edited.
"""


def main() -> None:
    """The command `python -m pipeline.artifacts`."""
    run_command(_run)


def _run() -> None:
    parser = Parser(
        prog="python -m pipeline.artifacts",
        description="List the results that stages have left, and remove those that nothing stands on.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("action", nargs="?", default="list", metavar="list|prune", help="(default: %(default)s)")
    parser.add_argument("--outputs", default="outputs", help="the folder of the runs (default: %(default)s)")
    parser.add_argument("--tracking-uri", help="a store besides those that runs here were tracked in")
    parser.add_argument("--outdated", action="store_true", help="prune: also what today's code would make again")
    parser.add_argument("--yes", action="store_true", help="prune: without asking")
    arguments = parser.parse_args()
    if arguments.action not in ("list", "prune"):
        raise UserError(f"{arguments.action}: {suggestion(arguments.action, ['list', 'prune'])}")
    for option in ("outdated", "yes"):
        if getattr(arguments, option) and arguments.action != "prune":
            raise UserError(f"--{option}: allowed: with prune")
    # Slow to import, and not needed for --help.
    from pipeline.run.artifact_store import Store
    from pipeline.run.inventory import table, take_stock, total

    outputs = resolved(arguments.outputs)
    store = Store(outputs / "artifacts")
    if not store.root.is_dir():
        raise UserError(f"--outputs={arguments.outputs}: {store.root} is no folder; python -m pipeline makes the first")
    users, known_by = _users(outputs, arguments.tracking_uri)
    items = take_stock(store, users)
    if arguments.action == "list":
        print(f"{table(items)} in {store.root}; runs: {known_by}")
        return
    chosen = [item for item in items if not item.users or (arguments.outdated and item.is_current is False)]
    if not chosen:
        print(f"nothing to remove: of {total(items)}, a run stands on each ({known_by})")
        return
    print(f"{table(chosen)} of {total(items)} to remove; runs: {known_by}")
    if not arguments.yes and not _is_agreed():
        print("nothing is removed")
        return
    users, _ = _users(outputs, arguments.tracking_uri)  # a run may have ended while this one was asked
    chosen = [item for item in chosen if item.name not in users or item.users]
    removed = store.remove(item.name for item in chosen)
    held = len(chosen) - len(removed)
    kept = f"; {held} are held by runs under way and stay" if held else ""
    print(f"removed {total(item for item in chosen if item.name in removed)}{kept}")


def _users(outputs: Path, uri: str | None) -> tuple[dict[str, list[str]], str]:
    """Who stands on which artifact, and where that is known from."""
    from pipeline.run.artifact_store import tracked_in
    from pipeline.settings.config import TrackingConfig
    from pipeline.sweeps.states import untracked_users
    from pipeline.tracking.reading import users_of_artifacts
    from pipeline.tracking.store import store_uri

    users, uris = untracked_users(outputs), dict.fromkeys(tracked_in(outputs))
    if uri is not None or (outputs / "mlflow.db").exists():
        uris[store_uri(TrackingConfig(uri=uri), outputs)] = None
    for known in uris:
        for name, runs in users_of_artifacts(TrackingConfig(uri=known), outputs).items():
            users.setdefault(name, []).extend(runs)
    return users, ", ".join(uris) or "none are tracked"


def _is_agreed() -> bool:
    if not sys.stdin.isatty():
        raise UserError("prune: nobody can be asked here; --yes removes them without asking")
    return input("remove them? [y/N] ").strip().lower() in ("y", "yes")


if __name__ == "__main__":
    main()
