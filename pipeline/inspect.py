"""`python -m pipeline.inspect FILE`: what is in an exported model, and what of it runs in int8."""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path

from pipeline.commands.command_line import Parser, run_command
from pipeline.host.files import resolved
from pipeline.runtimes import exported

_REGISTERED = "models:/"
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
    parser.add_argument(
        "model",
        nargs="?",
        metavar="MODEL",
        help="models:/NAME@ALIAS, models:/NAME/VERSION, or a path (default: the int8 model exported last)",
    )
    parser.add_argument("--runtime", help="which one runs the model; of your own: package.module:name")
    parser.add_argument("--outputs", default="outputs", help="the folder of the runs (default: %(default)s)")
    parser.add_argument("--tracking-uri", help="the store of models:/… (default: mlflow.db in --outputs)")
    return parser


def _run(arguments: argparse.Namespace) -> None:
    # torch, where it is imported, tells of each start that its quantized tensors are deprecated, and of its profiler.
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")
    # tabulate is not needed for --help.
    from pipeline.reports.file_report import report

    asked = arguments.model or ""
    if asked.startswith(_REGISTERED):
        # It imports mlflow, which takes seconds.
        from pipeline.settings.config import TrackingConfig
        from pipeline.tracking.registry import find_registered, source_run

        store = TrackingConfig(uri=arguments.tracking_uri), resolved(arguments.outputs)
        path = find_registered(asked, *store, key="MODEL")
        origin = [("made by", f"run {source_run(asked, *store) or 'not known'}")]
    else:
        path = exported.locate(arguments.model, arguments.outputs, arguments.runtime, key="MODEL")
        origin = _origin(path)
    print(report(exported.inspect(path, arguments.runtime), origin))


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
