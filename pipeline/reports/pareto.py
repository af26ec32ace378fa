"""The Pareto front of a search: the trials that no other beats in every objective, as a table and as a file."""

from __future__ import annotations

import csv
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tabulate import tabulate

from pipeline.host.files import write_and_rename


@dataclass(frozen=True)
class FrontTrial:
    """A trial on the front: its number, its objectives in their order, and what was set, as typed."""

    number: int
    objectives: Sequence[float]
    parameters: dict[str, str]
    overrides: Sequence[str]

    @property
    def command(self) -> str:
        """The line that runs it again."""
        return shlex.join(["python", "-m", "pipeline", *self.overrides])


def front_table(front: Sequence[FrontTrial], objectives: Sequence[str]) -> str:
    """Objectives and parameters of each trial, and below them the lines to type."""
    names = _parameter_names(front)
    rows = [
        [
            str(trial.number),
            *(f"{value:.4g}" for value in trial.objectives),
            *(trial.parameters.get(name, "") for name in names),
        ]
        for trial in front
    ]
    table = tabulate(rows, ["trial", *objectives, *names], tablefmt="simple", disable_numparse=True, stralign="right")
    lines = "\n".join(f"  {trial.number}:  {trial.command}" for trial in front)
    return f"{table}\n\nto run one again:\n{lines}"


def write_front(front: Sequence[FrontTrial], objectives: Sequence[str], path: Path) -> None:
    """The same as CSV, with every digit of the objectives; complete or absent."""
    names = _parameter_names(front)
    path.parent.mkdir(parents=True, exist_ok=True)
    with write_and_rename(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream)
        writer.writerow(["trial", *objectives, *names, "command"])
        for trial in front:
            parameters = [trial.parameters.get(name, "") for name in names]
            writer.writerow([trial.number, *trial.objectives, *parameters, trial.command])


def _parameter_names(front: Sequence[FrontTrial]) -> list[str]:
    return list(dict.fromkeys(name for trial in front for name in trial.parameters))
