"""`python -m pipeline.decide`: whether, and by which method, int8 keeps a budget; what it costs to know."""

from __future__ import annotations

import argparse
import dataclasses
import sys

from pipeline.commands.command_line import Parser, run_command
from pipeline.decision.verdict import Verdict
from pipeline.host import torchrun
from pipeline.host.errors import UserError, nearest
from pipeline.settings.decision import BudgetConfig, LadderConfig

_EPILOG = """examples:
  python -m pipeline.decide +experiment=resnet18_mnist budget.max_drop_pct=0.5
  python -m pipeline.decide dataset=mnist backend=openvino,onnxruntime budget.max_drop_pct=0.3 budget.min_speedup=2
  python -m pipeline.decide +experiment=resnet18_mnist ladder.worst_layers=5 budget.max_minutes=60

Every other key=value is one of python -m pipeline. Exit status: 0, a rung passes; 1, none does; 3, it cannot be told.
"""
# What a decision sets by itself, rung by rung.
_SET = ("stages", "method", "force")
_SECTIONS = {"budget": BudgetConfig, "ladder": LadderConfig}
# By the name of each of their settings.
_SECTION_OF = {spec.name: name for name, kind in _SECTIONS.items() for spec in dataclasses.fields(kind)}
_EXIT = {Verdict.PASSES: 0, Verdict.FAILS: 1, Verdict.UNKNOWN: 3}


def main() -> None:
    """The command `python -m pipeline.decide`."""
    status: list[int] = []
    run_command(lambda: status.append(_run(_parser().parse_intermixed_args())))
    sys.exit(status[0])


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="python -m pipeline.decide",
        description="Climb from cheap to dear until int8 keeps the budget, on validation, with intervals: "
        "post-training quantization first, training last.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "overrides", nargs="*", metavar="KEY=VALUE", help="budget.…, ladder.…, or of python -m pipeline"
    )
    parser.add_argument("--config-dir", "-cd", metavar="FOLDER", help="experiments and such of yours")
    return parser


def _run(arguments: argparse.Namespace) -> int:
    if torchrun.world_size() > 1:
        raise UserError("python -m pipeline.decide: allowed: without torchrun; its rungs are runs of one process")
    # They take a second, and --help need not wait for them.
    from pipeline.commands.arguments import of_config_dir
    from pipeline.commands.composition import CONFIG_FOLDER, compose_decision, compose_request
    from pipeline.decision.deciding import decide
    from pipeline.settings.config import Config
    from pipeline.settings.typed import command

    settings_of_runs = {spec.name for spec in dataclasses.fields(Config)}
    beside = [] if arguments.config_dir is None else [of_config_dir(arguments.config_dir, CONFIG_FOLDER)]
    ours = [text for text in arguments.overrides if _key(text).split(".")[0] in _SECTIONS]
    if "ladder.rungs={}" in ours:
        raise UserError("ladder.rungs={}: would take no rung away; allowed: ladder.climb=[…] with the rungs to climb")
    others = [text for text in arguments.overrides if text not in ours]
    for text in others:
        if _key(text) in _SECTION_OF:
            raise UserError(f"{text}: no such setting; did you mean {_SECTION_OF[_key(text)]}.{text}?")
        section = _key(text).split(".")[0]
        close = nearest(section, (*settings_of_runs, *_SECTIONS))
        if close in _SECTIONS:
            raise UserError(f"{text}: no such setting; did you mean {text.replace(section, close, 1)}?")
        if _key(text) in _SET:
            raise UserError(f"{text}: a decision sets it for each rung; allowed: python -m pipeline {text}")
    backends = [text for text in others if _key(text) == "backend"]
    for text in backends:
        if "[" in text:
            listed = text.replace("[", "").replace("]", "").replace(" ", "")
            raise UserError(f"{text}: allowed: one backend, or several as in {listed}")
    others = [*beside, *(text for text in others if text not in backends)]
    settings = compose_decision([*beside, *ours])
    named = backends[-1].partition("=")[2].split(",") if backends else [compose_request(others).config.backend.name]
    typed = command([*beside, *arguments.overrides], module="pipeline.decide")
    return _EXIT[decide(settings, others, list(dict.fromkeys(named)), compose_request, typed)]


def _key(override: str) -> str:
    return override.lstrip("+~").partition("=")[0]


if __name__ == "__main__":
    main()
