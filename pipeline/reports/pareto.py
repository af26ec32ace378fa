"""The Pareto front of a search: the trials that no other beats in every objective, as a table and as a file."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tabulate import tabulate

from pipeline.host.files import write_and_rename
from pipeline.settings.typed import command

if TYPE_CHECKING:  # imported only when there is a front
    import pandas as pd


@dataclass(frozen=True)
class FrontTrial:
    """A trial on the front: its number, its objectives in their order, and what was set, as typed."""

    number: int
    objectives: Sequence[float]
    parameters: dict[str, str]
    overrides: Sequence[str]


def front_table(front: Sequence[FrontTrial], objectives: Sequence[str]) -> str:
    """Objectives and parameters of each trial, and below them the lines to type."""
    frame = _frame(front, objectives)
    shown = frame.drop(columns="command").astype({"trial": str})
    shown[list(objectives)] = shown[list(objectives)].map("{:.4g}".format)
    table = tabulate(
        shown.to_dict("list"),
        headers="keys",
        tablefmt="simple",
        disable_numparse=True,
        stralign="right",
        showindex=False,
    )
    lines = "\n".join(f"  {number}:  {command}" for number, command in zip(frame.trial, frame.command, strict=True))
    return f"{table}\n\nto run one again:\n{lines}"


def write_front(front: Sequence[FrontTrial], objectives: Sequence[str], path: Path) -> None:
    """The same as CSV, with every digit of the objectives; complete or absent."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with write_and_rename(path) as temporary:
        _frame(front, objectives).to_csv(temporary, index=False)


def _frame(front: Sequence[FrontTrial], objectives: Sequence[str]) -> pd.DataFrame:
    """A row for each trial, with the line that runs it again."""
    import pandas as pd

    rows = [
        {"trial": trial.number, **dict(zip(objectives, trial.objectives, strict=True)), **trial.parameters}
        for trial in front
    ]
    frame = pd.DataFrame(rows).fillna("")
    return frame.assign(command=[command(trial.overrides) for trial in front])
