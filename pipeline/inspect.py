"""`python -m pipeline.inspect FILE`: what is in an exported model, and what of it runs in int8."""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path

from pipeline.commands.command_line import Parser, run_command
from pipeline.commands.exported_models import MODEL_HELP, REGISTERED, add_options, locate
from pipeline.host.files import resolved
from pipeline.runtimes import exported

_EPILOG = """examples:
  python -m pipeline.inspect                                   # the int8 model exported last
  python -m pipeline.inspect exported/model.onnx
  python -m pipeline.inspect models:/digits@champion
"""


def main() -> None:
    """The command `python -m pipeline.inspect`."""
    run_command(lambda: _run(_parser().parse_intermixed_args()))


def _parser() -> Parser:
    parser = Parser(
        prog="python -m pipeline.inspect",
        description="What is in an exported model: input, output, weights, and which operators run in int8.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("model", nargs="?", metavar="MODEL", help=MODEL_HELP)
    add_options(parser)
    return parser


def _run(arguments: argparse.Namespace) -> None:
    # torch, where it is imported, tells of each start that its quantized tensors are deprecated, and of its profiler.
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")
    # tabulate is not needed for --help.
    from pipeline.reports.file_report import report

    path = locate("MODEL", arguments)
    origin = _registered(arguments) if (arguments.model or "").startswith(REGISTERED) else _origin(path)
    print(report(exported.inspect(path, arguments.runtime), origin))


def _registered(arguments: argparse.Namespace) -> list[tuple[str, str]]:
    """What the store says of a registered model."""
    from pipeline.settings.config import TrackingConfig
    from pipeline.tracking.registry import source_run

    store = TrackingConfig(uri=arguments.tracking_uri), resolved(arguments.outputs)
    return [("made by", f"run {source_run(arguments.model, *store, 'MODEL') or 'not known'}")]


def _origin(path: Path) -> list[tuple[str, str]]:
    """What the artifact says that a file lies in, if it lies in one."""
    for folder in path.resolve().parents:
        try:
            made = json.loads((folder / "manifest.json").read_text())
            asked, machine = made["hashed"], made["machine"]
            model, data, backend = (asked[section]["name"] for section in ("model", "dataset", "backend"))
        except (OSError, ValueError, KeyError, TypeError):
            continue
        return [
            ("made by", f"{folder.name}: model {model}, dataset {data}, backend {backend}, torch {machine['torch']}"),
            ("its runs", f"in MLflow those whose tag artifact.export is {folder.name}"),
        ]
    return [("made by", "not known: it lies in no artifact of this pipeline")]


if __name__ == "__main__":
    main()
