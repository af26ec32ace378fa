"""`python -m pipeline.card RUN`: one page on a run's int8 model, to read and to sign."""

from __future__ import annotations

import argparse

from pipeline.commands.command_line import Parser, run_command
from pipeline.host.errors import UserError
from pipeline.host.files import make_writable_folder, resolved, shown


def main() -> None:
    """The command `python -m pipeline.card`."""
    run_command(lambda: _run(_parser().parse_intermixed_args()))


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="python -m pipeline.card",
        description="One page, HTML and Markdown, on a run's int8 model: data, worth, classes, files, how it was made.",
    )
    parser.add_argument("run", metavar="RUN", help="a run's id or name, or models:/NAME@ALIAS or models:/NAME/VERSION")
    parser.add_argument("--outputs", default="outputs", help="the folder of the runs (default: %(default)s)")
    parser.add_argument("--output", metavar="FOLDER", help="where the files go (default: cards/ in --outputs)")
    parser.add_argument("--tracking-uri", help="the store (default: mlflow.db in --outputs)")
    return parser


def _run(arguments: argparse.Namespace) -> None:
    # Slow to import, and not needed for --help.
    from pipeline.reports.card import markdown, page
    from pipeline.run.card import sections, title
    from pipeline.settings.config import TrackingConfig
    from pipeline.tracking.reading import read_runs
    from pipeline.tracking.registry import source_run

    config, outputs = TrackingConfig(uri=arguments.tracking_uri), resolved(arguments.outputs)
    asked = arguments.run
    if asked.startswith("models:/"):
        asked = source_run(asked, config, outputs, "RUN") or asked
    found = read_runs(config, outputs, asked, key="RUN")
    if len(found) != 1:
        names = ", ".join(f"{run.name} ({run.run_id})" for run in found[:5])
        raise UserError(
            f"RUN {arguments.run}: {len(found)} runs, of which the first are {names}; allowed: the id of one"
        )
    given = resolved(arguments.output) if arguments.output else outputs / "cards"
    folder, written = make_writable_folder(given, "--output"), sections(found[0], outputs)
    for suffix, text in ((".md", markdown(title(found[0]), written)), (".html", page(title(found[0]), written))):
        (folder / f"{found[0].run_id}{suffix}").write_text(text)
    print(f"{markdown(title(found[0]), written)}\n{shown(folder / found[0].run_id)}.html, .md")


if __name__ == "__main__":
    main()
