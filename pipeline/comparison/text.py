"""The comparison as text: in the terminal, and in Markdown for a run's page."""

from __future__ import annotations

import html
from collections.abc import Hashable, Mapping
from typing import Any

import pandas as pd
from tabulate import tabulate

from pipeline.comparison.table import Comparison

MAX_DESCRIPTION_CHARACTERS = 7500
"""MLflow cuts a description at 8000 characters, in the midst of a row."""

# Shorter than the headings of the page: a terminal is narrow.
_SHOWN = {
    "int8/accuracy_pct": "int8 %",
    "interval": "95 % interval",
    "accuracy_drop_pct": "drop",
    "int8/latency_ms": "int8 ms",
    "speedup": "speedup",
    "int8/size_mb": "int8 MB",
    "compression": "smaller",
    "front": "front",
}


def text_table(comparison: Comparison, style: str = "simple", max_characters: int | None = None) -> str:
    """The sorted table with its rule and counts, in a style of tabulate ('simple', 'github').

    With `max_characters`, the last rows go where all of them would be longer.
    """
    frame = comparison.frame
    leading = [*comparison.varying, *([] if comparison.told_apart else ["run"])]
    shown = [name for name in _SHOWN if name != "interval" or frame["test_images"].notna().any()]
    rows = [
        [*(cell_text(row[name]) for name in leading), *(_cell(row, name) for name in shown)]
        for row in frame.to_dict("records")
    ]
    headings = [*leading, *(_SHOWN[name] for name in shown)]
    if style == "github":
        headings, *rows = ([_in_markdown(cell) for cell in row] for row in [headings, *rows])
    align = ["right" if pd.api.types.is_numeric_dtype(frame[name]) else "left" for name in leading]
    align += ["right"] * len(shown)
    for kept in range(len(rows), 0, -1):
        table = tabulate(rows[:kept], headings, tablefmt=style, disable_numparse=True, colalign=align)
        cut = "" if kept == len(rows) else f"\n\nThe first {kept} of {len(rows)} rows; comparison.csv has all of them."
        text = f"{comparison.rule}\n\n{table}{cut}\n\n{comparison.counted}\n"
        if max_characters is None or len(text) <= max_characters:
            return text
    return f"{comparison.rule}\n\n{comparison.counted}\n"


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
        bounds = [cell_text(row[f"int8/accuracy_{end}_pct"], 2) for end in ("low", "high")]
        return " to ".join(bounds) if all(bounds) else ""
    if name == "front":
        return "yes" if row["on_front"] else ""
    suffix = "x" if name in ("speedup", "compression") else ""
    return cell_text(row[name], 2) + suffix
