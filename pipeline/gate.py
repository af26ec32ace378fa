"""`python -m pipeline.gate MODEL`: whether a model may be shipped, told by the exit status."""

from __future__ import annotations

import argparse
import math
import os
import sys
import warnings
from pathlib import Path

from pipeline.commands.command_line import Parser, run_command
from pipeline.decision import gate
from pipeline.decision.junit import write_junit
from pipeline.decision.subject import find
from pipeline.decision.verdict import Verdict, together
from pipeline.host.errors import UserError
from pipeline.host.files import make_writable_folder, resolved
from pipeline.host.machine import UNSHARED, machine_of
from pipeline.host.terminal import say

_STATUS = {Verdict.PASSES: 0, Verdict.FAILS: 1, Verdict.UNKNOWN: 3}
_LIMITS = ("max_drop_pct", "max_latency_ratio", "max_latency_ms", "max_size_mb")
_EPILOG = """exit status: 0 every limit is kept, 1 one is not, 3 one cannot be told, 2 a mistake in what was typed

examples:
  python -m pipeline.gate RUN_ID --max-drop-pct 0.5                              # by what the run has recorded
  python -m pipeline.gate models:/digits@champion --max-drop-pct 0.5 \\
      --max-latency-ratio 1.05 --against models:/digits/3                        # latencies are measured here
  python -m pipeline.gate new/model.onnx --against old/model.onnx \\
      --images test --max-drop-pct 0.5 --junit gate.xml                          # and accuracies, on test/<class>/*
"""


def main() -> None:
    """The command `python -m pipeline.gate`."""
    run_command(lambda: _run(_parser().parse_intermixed_args()))


def _parser() -> Parser:
    parser = Parser(
        prog="python -m pipeline.gate",
        description="Whether a model keeps limits, judged by 95 % intervals.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "model", metavar="MODEL", help="a run's id or name, models:/NAME@ALIAS, models:/NAME/VERSION, or a path"
    )
    parser.add_argument("--against", metavar="MODEL", help="what it is held against, of the same kinds")
    parser.add_argument(
        "--max-drop-pct",
        type=float,
        metavar="N",
        help="what int8 may lose against fp32, as the run has recorded it, in points of accuracy or the unit of what "
        "else runs are judged by; with --images: what MODEL may lose against --against",
    )
    parser.add_argument("--max-latency-ratio", type=float, metavar="N", help="its latency over that of --against")
    parser.add_argument("--max-latency-ms", type=float, metavar="N", help="its median at batch 1, on 1 thread")
    parser.add_argument("--max-size-mb", type=float, metavar="N", help="its file, in 10^6 bytes")
    parser.add_argument("--images", metavar="FOLDER", help="measure accuracy anew: a folder of images for each class")
    parser.add_argument("--junit", metavar="FILE", help="write the verdicts as JUnit's XML too")
    parser.add_argument(
        "--max-seconds", type=float, default=60, metavar="N", help="for measuring latencies (default: %(default)s)"
    )
    parser.add_argument("--outputs", default="outputs", help="the folder of the runs (default: %(default)s)")
    parser.add_argument("--tracking-uri", help="the store (default: mlflow.db in --outputs)")
    return parser


def _run(arguments: argparse.Namespace) -> None:
    limits = _limits(arguments)
    # torch, where it is imported, tells of each start that its quantized tensors are deprecated.
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    warnings.filterwarnings("ignore", module="PIL")
    report = resolved(arguments.junit) if arguments.junit else None
    if report is not None:
        if report.is_dir():
            raise UserError(f"--junit {arguments.junit}: is a folder; allowed: a file")
        if report.exists() and not report.read_bytes().startswith(b"<?xml"):
            raise UserError(
                f"--junit {arguments.junit}: is there, and no report; allowed: a new file, or an earlier report"
            )
        make_writable_folder(report.parent, "--junit")
    outputs, images = resolved(arguments.outputs), Path(os.path.expanduser(arguments.images or ""))
    with_model = arguments.images is not None or any(limit is not None for limit in limits.of_models)
    place = (outputs, arguments.tracking_uri, with_model)
    this = find("MODEL", arguments.model, *place)
    that = None if arguments.against is None else find("--against", arguments.against, *place)
    artifacts = outputs / "artifacts"
    machine = machine_of(artifacts) if artifacts.is_dir() else UNSHARED
    found = []
    for criterion in gate.criteria(
        this, that, limits, images if arguments.images else None, arguments.max_seconds, machine
    ):
        say(criterion.line)
        found.append(criterion)
    verdict = together(found)
    say(f"{arguments.model}: {verdict}")
    if report is not None:
        write_junit(found, arguments.model, report)
    sys.exit(_STATUS[verdict])


def _limits(arguments: argparse.Namespace) -> gate.Limits:
    """The limits that were typed; refuses what does not go together."""
    given = {name: getattr(arguments, name) for name in _LIMITS}
    options = {name: f"--{name.replace('_', '-')}" for name in (*_LIMITS, "max_seconds")}
    if all(limit is None for limit in given.values()):
        raise UserError(f"no limit is given; allowed: {', '.join(options[name] for name in _LIMITS)}")
    for name, limit in (*given.items(), ("max_seconds", arguments.max_seconds)):
        if limit is not None and not (math.isfinite(limit) and (limit > 0 or (limit == 0 and name == "max_drop_pct"))):
            least = "at least 0" if name == "max_drop_pct" else "above 0"
            raise UserError(f"{options[name]} {limit:g}: allowed: {least}")
    if arguments.images is not None:
        for needed, value in (("--max-drop-pct", arguments.max_drop_pct), ("--against", arguments.against)):
            if value is None:
                raise UserError(f"--images {arguments.images}: allowed: with {needed}")
    if arguments.max_latency_ratio is not None and arguments.against is None:
        raise UserError(f"--max-latency-ratio {arguments.max_latency_ratio:g}: allowed: with --against")
    if arguments.against is not None and arguments.max_latency_ratio is None and arguments.images is None:
        raise UserError(f"--against {arguments.against}: allowed: with --max-latency-ratio or --images")
    return gate.Limits(*given.values())


if __name__ == "__main__":
    main()
