"""The comparison as text: in the terminal, and in Markdown for a run's page."""

from __future__ import annotations

import html
from collections.abc import Hashable, Mapping
from typing import Any

import pandas as pd
from tabulate import tabulate

from pipeline.reports.comparison.seeds import OverSeeds, over_seeds
from pipeline.reports.comparison.table import Comparison

MAX_DESCRIPTION_CHARACTERS = 7500
"""MLflow cuts a description at 8000 characters, in the midst of a row."""

# Shorter than the headings of the page: a terminal is narrow.
_SHOWN = {
    "val/int8_accuracy_pct": "val %",
    "int8/accuracy_pct": "test %",
    "interval": "95 % interval",
    "accuracy_drop_pct": "drop",
    "drop_interval": "95 % interval",
    "fp32_finetuned/accuracy_pct": "tuned %",
    "ptq_int8/accuracy_pct": "PTQ %",
    "qat_fake/accuracy_pct": "fake %",
    "int8/latency_ms": "int8 ms",
    "speedup": "speedup",
    "int8/size_mb": "int8 MB",
    "compression": "smaller",
    "front": "front",
}
# Known of some runs alone; the interval is, where the number of test images is.
_WHERE_KNOWN = {"interval": "test_images", "drop_interval": "accuracy_drop_ci_low_pct"} | {
    name: name for name in ("fp32_finetuned/accuracy_pct", "ptq_int8/accuracy_pct", "qat_fake/accuracy_pct")
}
SEEDS_NOTE = "mean ± sample standard deviation"


def text_table(comparison: Comparison, style: str = "simple", max_characters: int | None = None) -> str:
    """The sorted table with its rule and counts, in a style of tabulate ('simple', 'github').

    Below it, where runs differ in their seed alone, what they have over seeds. With `max_characters`, the last
    rows go where all of them would be longer.
    """
    frame = comparison.frame
    leading = [*comparison.varying, *([] if comparison.told_apart else ["run"])]
    shown = [name for name in _SHOWN if name not in _WHERE_KNOWN or frame[_WHERE_KNOWN[name]].notna().any()]
    rows = [
        [*(cell_text(row[name]) for name in leading), *(_cell(row, name) for name in shown)]
        for row in frame.to_dict("records")
    ]
    headings = [*leading, *(_SHOWN[name] for name in shown)]
    if style == "github":
        headings, *rows = ([_in_markdown(cell) for cell in row] for row in [headings, *rows])
    align = ["right" if pd.api.types.is_numeric_dtype(frame[name]) else "left" for name in leading]
    align += ["right"] * len(shown)
    summary = over_seeds(comparison)
    below = "" if summary is None else f"\n{seeds_table(summary, style)}"
    if max_characters is not None and len(below) > max_characters / 2:
        below = "\nOver seeds: over_seeds.csv.\n"
    for kept in range(len(rows), 0, -1):
        table = tabulate(rows[:kept], headings, tablefmt=style, disable_numparse=True, colalign=align)
        cut = "" if kept == len(rows) else f"\n\nThe first {kept} of {len(rows)} rows; comparison.csv has all of them."
        text = f"{comparison.rule}\n\n{table}{cut}\n\n{comparison.counted}\n{below}"
        if max_characters is None or len(text) <= max_characters:
            return text
    return f"{comparison.rule}\n\n{comparison.counted}\n{below}"


def seeds_table(summary: OverSeeds, style: str = "simple") -> str:
    """The groups of runs that differ in their seed alone, in a style of tabulate ('simple', 'github')."""
    headings, rows = seeds_cells(summary)
    if style == "github":
        headings, *rows = ([_in_markdown(cell) for cell in row] for row in [headings, *rows])
    align = ["left"] * len(summary.varying) + ["right"] * (len(headings) - len(summary.varying))
    table = tabulate(rows, headings, tablefmt=style, disable_numparse=True, colalign=align)
    return f"Over seeds: {SEEDS_NOTE}\n\n{table}\n"


def seeds_cells(summary: OverSeeds) -> tuple[list[str], list[list[str]]]:
    """The headings and the rows of the table over seeds, as text; a dash for what is not known."""
    headings = [*summary.varying, "seeds", *(quantity.heading for quantity in summary.quantities)]
    rows = []
    for row in summary.frame.to_dict("records"):
        cells = [*(cell_text(row[name]) for name in summary.varying), str(row["seeds"])]
        for quantity in summary.quantities:
            mean, deviation = (cell_text(row[name], 2) or "–" for name in quantity.columns())
            cells.append("–" if mean == "–" else f"{mean} ± {deviation}")
        rows.append(cells)
    return headings, rows


def cell_text(value: object, digits: int | None = None) -> str:
    """A value as the tables show it; nothing for what is missing."""
    if value is None or value != value:
        return ""
    if digits is not None:
        return f"{value:.{digits}f}"
    return f"{value:g}" if isinstance(value, float) else str(value)


def _in_markdown(cell: str) -> str:
    """A cell that neither ends early nor is read as HTML."""
    return html.escape(" ".join(cell.split()), quote=False).replace("|", "\\|")


def _cell(row: Mapping[Hashable, Any], name: str) -> str:
    if name == "interval":
        bounds = [cell_text(row[f"int8/accuracy_ci_{end}_pct"], 2) for end in ("low", "high")]
        return " to ".join(bounds) if all(bounds) else ""
    if name == "drop_interval":
        bounds = [cell_text(row[f"accuracy_drop_ci_{end}_pct"], 2) for end in ("low", "high")]
        return " to ".join(bounds) if all(bounds) else ""
    if name == "front":
        return "yes" if row["on_front"] else ""
    suffix = "x" if name in ("speedup", "compression") else ""
    return cell_text(row[name], 2) + suffix
