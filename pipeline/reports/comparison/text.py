"""The comparison as text: in the terminal, and in Markdown for a run's page."""

from __future__ import annotations

import html
from collections.abc import Sequence

import pandas as pd
from tabulate import tabulate

from pipeline.reports.comparison.seeds import OverSeeds, mean_and_deviation, over_seeds
from pipeline.reports.comparison.table import COLUMNS, Comparison

MAX_DESCRIPTION_CHARACTERS = 7500
"""MLflow cuts a description at 8000 characters, in the midst of a row."""
SEEDS_NOTE = "mean ± sample standard deviation"


def text_table(comparison: Comparison, style: str = "simple", max_characters: int | None = None) -> str:
    """The sorted table with its rule and counts, in a style of tabulate ('simple', 'github').

    Below it, where runs differ in their seed alone, what they have over seeds. With `max_characters`, the last
    rows go where all of them would be longer.
    """
    frame = comparison.frame
    leading = [*comparison.varying, *([] if comparison.told_apart else ["run"])]
    columns = [(name, cells(frame[name])) for name in leading]
    align = ["right" if pd.api.types.is_numeric_dtype(frame[name]) else "left" for name in leading]
    for column in COLUMNS:
        if not column.short or frame[column.name].isna().all():
            continue
        columns.append((column.short, cells(frame[column.name], column.digits)))
        low, high = (column.name.replace("_pct", f"_ci_{end}_pct") for end in ("low", "high"))
        if low in frame and low != column.name and frame[low].notna().any():
            bounds = zip(cells(frame[low], 2), cells(frame[high], 2), strict=True)
            columns.append(("95 % interval", [f"{start} to {end}" if start else "" for start, end in bounds]))
    columns.append(("front", ["yes" if best else "" for best in frame["on_front"]]))
    headings = [heading for heading, _ in columns]
    rows = list(zip(*(texts for _, texts in columns), strict=True))
    align += ["right"] * (len(headings) - len(leading))
    summary = over_seeds(comparison)
    below = "" if summary is None else f"\n{_seeds_table(summary, style)}"
    if max_characters is not None and len(below) > max_characters / 2:
        below = "\nOver seeds: over_seeds.csv.\n"
    for kept in range(len(rows), 0, -1):
        table = _table(headings, rows[:kept], align, style)
        cut = "" if kept == len(rows) else f"\n\nThe first {kept} of {len(rows)} rows; comparison.csv has all of them."
        text = f"{comparison.rule}\n\n{table}{cut}\n\n{comparison.counted}\n{below}"
        if max_characters is None or len(text) <= max_characters:
            return text
    return f"{comparison.rule}\n\n{comparison.counted}\n{below}"


def seeds_cells(summary: OverSeeds) -> tuple[list[str], list[tuple[str, ...]]]:
    """The headings and the rows of the table over seeds, as text; a dash for what is not known."""
    headings = [*summary.varying, "seeds", *(column.over_seeds for column in summary.columns)]
    columns = [cells(summary.frame[name]) for name in (*summary.varying, "seeds")]
    for column in summary.columns:
        means, deviations = (cells(summary.frame[name], 2) for name in mean_and_deviation(column))
        pairs = zip(means, deviations, strict=True)
        columns.append([f"{mean} ± {deviation or '–'}" if mean else "–" for mean, deviation in pairs])
    return headings, list(zip(*columns, strict=True))


def cells(values: pd.Series, digits: int | None = None) -> list[str]:
    """A column as the tables show it; nothing for what is missing."""

    def text(value: object) -> str:
        if pd.isna(value):  # type: ignore[call-overload]
            return ""
        if digits is not None:
            return f"{value:.{digits}f}"
        return f"{value:g}" if isinstance(value, float) else str(value)

    return [text(value) for value in values]


def _seeds_table(summary: OverSeeds, style: str) -> str:
    headings, rows = seeds_cells(summary)
    align = ["left"] * len(summary.varying) + ["right"] * (len(headings) - len(summary.varying))
    return f"Over seeds: {SEEDS_NOTE}\n\n{_table(headings, rows, align, style)}\n"


def _table(headings: Sequence[str], rows: Sequence[Sequence[str]], align: Sequence[str], style: str) -> str:
    if style == "github":  # cells that neither end early nor are read as HTML
        headings, *rows = (
            [html.escape(" ".join(cell.split()), quote=False).replace("|", "\\|") for cell in row]
            for row in (headings, *rows)
        )
    return tabulate(rows, headings, tablefmt=style, disable_numparse=True, colalign=align)
