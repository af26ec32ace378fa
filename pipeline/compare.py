"""`python -m pipeline.compare`: put finished runs side by side, in the terminal and as files."""

from __future__ import annotations

import argparse
import math
from pathlib import Path

from pipeline.commands.command_line import Parser, run_command
from pipeline.host.errors import UserError
from pipeline.host.files import PROJECT_ROOT, in_project, make_writable_folder

_EPILOG = """examples:
  python -m pipeline.compare                                          # all runs of the newest experiment
  python -m pipeline.compare 3f2a9c01                                  # the jobs of a sweep, by its id or its name
  python -m pipeline.compare 'params.`backend.name` = "fbgemm"'        # an MLflow filter
"""


def main() -> None:
    """The command `python -m pipeline.compare`."""
    run_command(lambda: _run(_parser().parse_intermixed_args()))


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="python -m pipeline.compare",
        description="Put finished runs side by side: a table, comparison.html, PNGs of its plots, a CSV.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("selection", nargs="?", help="a sweep's id or name, a run's, or an MLflow filter")
    parser.add_argument("--experiment", help="the experiment's name (default: the one with the newest run)")
    parser.add_argument("--outputs", default="outputs", help="the folder of the runs (default: %(default)s)")
    parser.add_argument("--output", metavar="FOLDER", help="where the files go (default: comparison/ in --outputs)")
    parser.add_argument("--tracking-uri", help="the store (default: mlflow.db in --outputs)")
    parser.add_argument(
        "--max-drop-pct",
        type=float,
        default=0.5,
        help="what int8 may lose, in points of accuracy or the unit of what else runs are judged by, before a run goes "
        "behind the others (default: %(default)s)",
    )
    return parser


def _run(arguments: argparse.Namespace) -> None:
    drop = arguments.max_drop_pct
    if not (math.isfinite(drop) and drop >= 0):
        raise UserError(f"--max-drop-pct {drop:g}: allowed: at least 0")
    # Slow to import, and not needed for --help.
    from pipeline.reports.comparison import write_comparison
    from pipeline.reports.comparison.table import compare
    from pipeline.reports.comparison.text import text_table
    from pipeline.settings.config import TrackingConfig
    from pipeline.tracking.reading import read_runs
    from pipeline.tracking.store import tell_unused_store

    config = TrackingConfig(uri=arguments.tracking_uri)
    outputs = in_project(arguments.outputs)
    tell_unused_store(config, outputs, "--tracking-uri=$MLFLOW_TRACKING_URI")
    runs = read_runs(config, outputs, arguments.selection, arguments.experiment)
    comparison = compare(runs, drop)
    folder = make_writable_folder(
        in_project(arguments.output) if arguments.output else outputs / "comparison", "--output"
    )
    title = f"Comparison: {arguments.selection or arguments.experiment or 'all runs'}"
    files = write_comparison(comparison, folder, title)
    print(f"{text_table(comparison)}\n{_shown(folder)}: {', '.join(path.name for path in files)}")


def _shown(path: Path) -> str:
    return str(path.relative_to(PROJECT_ROOT) if path.is_relative_to(PROJECT_ROOT) else path)


if __name__ == "__main__":
    main()
