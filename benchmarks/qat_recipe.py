"""Does QAT hurt? Each run of an experiment against fp32 and PTQ on the same images, corrected for all of them.

    python -m pipeline -m +experiment=resnet18_mnist 'stages=[train,fuse,ptq,qat,convert,evaluate]' qat.seed=0,1,2,3,4
    python -m benchmarks.qat_recipe resnet18_mnist

Prints, for each network and data set, the mean and the sample standard deviation of the accuracies over the runs, and
the runs with their exact McNemar tests, whose p are corrected by Holm over all runs of the table.
"""

from __future__ import annotations

import argparse
import math
import statistics
from itertools import groupby

from tabulate import tabulate

from pipeline.commands.command_line import Parser, run_command
from pipeline.host.errors import UserError
from pipeline.host.files import resolved
from pipeline.measure.statistics import holm
from pipeline.reports.tracked_run import TrackedRun
from pipeline.settings.config import TrackingConfig
from pipeline.tracking.reading import read_runs

_FORMS = ("fp32", "fp32_finetuned", "ptq_int8", "int8")
_AGAINST = ("fp32", "ptq_int8")


def main() -> None:
    run_command(_run)


def _run() -> None:
    parser = Parser(
        "python -m benchmarks.qat_recipe", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("experiments", nargs="+", help="their names in the tracking store")
    parser.add_argument("--outputs", default="outputs")
    arguments = parser.parse_args()
    found = [
        run
        for experiment in arguments.experiments
        for run in read_runs(TrackingConfig(), resolved(arguments.outputs), None, experiment)
        if run.status == "FINISHED" and "int8_vs_ptq_int8/mcnemar_p" in run.metrics
    ]
    if not found:
        raise UserError(f"{', '.join(arguments.experiments)}: no finished run with stages ptq, qat and evaluate")
    runs = sorted({_result(run): run for run in found}.values(), key=lambda run: (_group(run), _seed(run)))
    print(_means(runs), _each(runs), sep="\n\n")


def _result(run: TrackedRun) -> str:
    """What tells one result from another: a run that was repeated from the cache counts once."""
    return run.tags["artifact.evaluate"]


def _group(run: TrackedRun) -> tuple[str, ...]:
    limit = run.parameters["dataset.max_train_samples"]
    images = "all" if limit == "None" else limit
    return (run.parameters["dataset.name"], images, run.parameters["model.name"], run.parameters["backend.name"])


def _seed(run: TrackedRun) -> int:
    own = run.parameters["qat.seed"]
    return int(run.parameters["seed"] if own == "None" else own)


def _means(runs: list[TrackedRun]) -> str:
    rows = []
    for group, members in groupby(runs, _group):
        among = list(members)
        drop = [run.metrics["accuracy_drop_pct"] for run in among]
        cells = [_spread([run.metrics.get(f"{form}/accuracy_pct", math.nan) for run in among]) for form in _FORMS]
        rows.append([*group, len(among), *cells, _spread(drop)])
    headers = [
        "data",
        "images",
        "network",
        "backend",
        "QATs",
        "fp32",
        "fine-tuned",
        "PTQ int8",
        "QAT int8",
        "drop, points",
    ]
    return tabulate(rows, headers, tablefmt="github", disable_numparse=True)


def _spread(values: list[float]) -> str:
    if math.isnan(values[0]):  # a control that was not asked for
        return ""
    deviation = statistics.stdev(values) if len(values) > 1 else 0.0
    return f"{statistics.mean(values):.2f} ± {deviation:.2f}"


def _each(runs: list[TrackedRun]) -> str:
    corrected = {form: holm([run.metrics[f"int8_vs_{form}/mcnemar_p"] for run in runs]) for form in _AGAINST}
    rows = []
    for index, run in enumerate(runs):
        cells = []
        for form in _AGAINST:
            lost, won = (run.metrics[f"int8_vs_{form}/{what}_images"] for what in ("lost", "won"))
            cells += [f"{lost:.0f} / {won:.0f}", f"{corrected[form][index]:.2g}"]
        kept = f"{run.metrics['qat/kept_epoch']:.0f} of {run.parameters['qat.epochs']}"
        rows.append(
            [*_group(run), _seed(run), run.tags["threads"], f"{run.metrics['int8/accuracy_pct']:.2f}", *cells, kept]
        )
    headers = ["data", "images", "network", "backend", "qat.seed", "threads", "QAT int8"]
    headers += ["lost / won against fp32", "p", "lost / won against PTQ", "p", "kept epoch"]
    return tabulate(rows, headers, tablefmt="github", disable_numparse=True)


if __name__ == "__main__":
    main()
