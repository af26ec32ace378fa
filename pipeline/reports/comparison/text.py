"""The comparison as text: in the terminal, and in Markdown for a run's page."""

from __future__ import annotations

import html
from collections.abc import Sequence

import pandas as pd
from tabulate import tabulate

from pipeline.reports.comparison.seeds import OverSeeds, mean_and_deviation, over_seeds
from pipeline.reports.comparison.table import Comparison

MAX_DESCRIPTION_CHARACTERS = 7500
"""MLflow cuts a description at 8000 characters, in the midst of a row."""
SEEDS_NOTE = "mean ± sample standard deviation"


def text_table(comparison: Comparison, style: str = "simple", max_characters: int | None = None) -> str:
    """The sorted table with its rule and counts, in a style of tabulate ('simple', 'github').

    Below it, where runs differ in their seed alone, what they have over seeds. With `max_characters`, the last
    rows go where all of them would be longer.
    """
    runs, summary = runs_cells(comparison), over_seeds(comparison)
    below = "" if summary is None else f"\nOver seeds: {SEEDS_NOTE}\n\n{table(seeds_cells(summary), style)}\n"
    if max_characters is not None and len(below) > max_characters / 2:
        below = "\nOver seeds: over_seeds.csv.\n"
    for kept in range(len(runs), -1, -1):
        cut = "" if kept == len(runs) else f"\n\nThe first {kept} of {len(runs)} rows; comparison.csv has all of them."
        shown = table(runs.head(kept), style)
        text = f"{comparison.rule}\n\n{shown}{cut}\n\n{comparison.counted}\n{below}"
        if max_characters is None or len(text) <= max_characters:
            break
    return text


def runs_cells(comparison: Comparison, wide: bool = False) -> pd.DataFrame:
    """The table of runs as text: what differs in front, then what the terminal has room for, or all if `wide`."""
    frame, metric = comparison.frame, comparison.metric
    names = [*comparison.varying, *([] if comparison.told_apart else ["run"])]
    columns = [(name, cells(frame[name])) for name in names]
    for column in comparison.columns:
        heading = column.heading if wide else column.short
        if not heading or frame[column.name].isna().all():
            continue
        columns.append((heading, cells(frame[column.name], column.digits)))
        stem = column.name.removesuffix(f"_{metric.unit}")
        low, high = (metric.in_unit(f"{stem}_ci_{end}") for end in ("low", "high"))
        if low in frame and frame[low].notna().any():
            bounds = zip(cells(frame[low], 2), cells(frame[high], 2), strict=True)
            columns.append(("95 % interval", [f"{start} to {end}" if start else "" for start, end in bounds]))
    columns.append(("front", ["yes" if best else "" for best in frame["on_front"]]))
    if wide:
        within = ["yes" if within else "no" for within in frame["within_max_drop"]]
        columns.append((f"drop within {comparison.max_drop_pct:g}", within))
        columns += [("run", cells(frame["run"]))] if comparison.told_apart else []
    return _frame(columns)


def seeds_cells(summary: OverSeeds) -> pd.DataFrame:
    """The table over seeds as text; a dash for what is not known."""
    columns = [(name, cells(summary.frame[name])) for name in (*summary.varying, "seeds")]
    for column in summary.columns:
        means, deviations = (cells(summary.frame[name], 2) for name in mean_and_deviation(column))
        pairs = zip(means, deviations, strict=True)
        columns.append(
            (column.over_seeds, [f"{mean} ± {deviation or '–'}" if mean else "–" for mean, deviation in pairs])
        )
    return _frame(columns)


def cells(values: pd.Series, digits: int | None = None) -> list[str]:
    """A column as the tables show it; nothing for what is missing."""

    def text(value: object) -> str:
        if pd.isna(value):  # type: ignore[call-overload]
            return ""
        if digits is not None:
            return f"{value:.{digits}f}"
        return f"{value:g}" if isinstance(value, float) else str(value)

    return [text(value) for value in values]


def table(shown: pd.DataFrame, style: str) -> str:
    """A table in a style of tabulate; what begins with a number stands at the right."""
    headings, rows = list(shown.columns), shown.to_numpy().tolist()
    align = ["right" if column.str.match(r"[-–\d]|$").all() else "left" for _, column in shown.items()]
    if style == "github":  # cells that neither end early nor are read as HTML
        headings, *rows = (
            [html.escape(" ".join(cell.split()), quote=False).replace("|", "\\|") for cell in row]
            for row in (headings, *rows)
        )
    return tabulate(rows, headings, tablefmt=style, disable_numparse=True, colalign=align)


def _frame(columns: Sequence[tuple[str, list[str]]]) -> pd.DataFrame:
    """Columns of text, of which two may have the same heading."""
    return pd.DataFrame(
        list(zip(*(texts for _, texts in columns), strict=True)), columns=[heading for heading, _ in columns]
    )
