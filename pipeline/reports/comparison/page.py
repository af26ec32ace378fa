"""comparison.html: plots and a sortable table."""

from __future__ import annotations

import base64
import html
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from pipeline.reports.comparison.plots import HEIGHT, WIDTH, Mark
from pipeline.reports.comparison.seeds import over_seeds
from pipeline.reports.comparison.table import Comparison
from pipeline.reports.comparison.text import SEEDS_NOTE, cells, runs_cells, seeds_cells, table
from pipeline.reports.html_page import document

_SORT = """
for (const table of document.querySelectorAll("table")) {
  const headings = Array.from(table.tHead.rows[0].cells);
  headings.forEach((heading, column) => heading.addEventListener("click", () => {
    const direction = heading.getAttribute("aria-sort") === "ascending" ? -1 : 1;
    for (const other of headings) other.removeAttribute("aria-sort");
    heading.setAttribute("aria-sort", direction === 1 ? "ascending" : "descending");
    const body = table.tBodies[0], cell = row => row.cells[column].textContent.trim();
    const numeric = Array.from(body.rows).every(row => !isNaN(cell(row)));
    const compare = (x, y) => numeric ? x - y : x.localeCompare(y, "en", {numeric: true});
    const rows = Array.from(body.rows).sort((a, b) => {
      const [x, y] = [cell(a), cell(b)];
      return x === "" || y === "" ? (x === "") - (y === "") : direction * compare(x, y);
    });
    body.append(...rows);
  }));
}
"""


def page(comparison: Comparison, title: str, pictures: Mapping[str, str]) -> str:
    """The whole page as HTML; `pictures` are the plots, by the name of their file."""
    metric = comparison.metric
    known = metric.is_share and comparison.frame["val/images"].notna().any()
    interval = "Vertical bars: 95 % Wilson interval over the validation images. " if known else ""
    notes = {
        "latency": (
            f"{metric.label.capitalize()} on the validation part. Filled: int8, open: fp32 of the same run, joined. "
            f"Area: size of the model. {interval}Horizontal bars: from the median latency to the 90th percentile. "
            "Dashed: the Pareto front, the models that no other one beats."
        ),
        "epochs": (
            f"A line joins runs that differ in nothing but their QAT epochs. {interval}Lines are moved sideways a "
            "little, so that their bars do not cover each other."
        ),
    }
    parts = [f"<h1>{html.escape(title)}</h1>", _note(comparison.counted), _first(comparison)]
    for name, drawn in pictures.items():
        parts += [drawn, _note(notes[name.removesuffix(".png").rpartition("_")[2]])]
    parts += ["<h2>Runs</h2>", _note(f"{comparison.rule} A click on a heading sorts by it.")]
    parts.append(table(runs_cells(comparison, wide=True), "html"))
    summary = over_seeds(comparison)
    if summary is not None:
        parts += ["<h2>Over seeds</h2>", _note(f"Runs that differ in their seed alone: {SEEDS_NOTE}.")]
        parts.append(table(seeds_cells(summary), "html"))
    if comparison.shared:
        shared = pd.DataFrame(sorted(comparison.shared.items()), columns=["setting", "value"]).astype(str)
        summed_up = f"What all of them share ({len(shared)} settings)"
        parts.append(f"<details><summary>{summed_up}</summary>{table(shared, 'html')}</details>")
    return document(title, parts, _SORT)


def picture(png: bytes, marks: Sequence[Mark]) -> str:
    """A plot as a part of the page; where the pointer rests on a model, the browser shows what is known of it."""
    shown = "\n".join(
        f'<circle cx="{mark.x:.0f}" cy="{mark.y:.0f}" r="12"><title>{html.escape(mark.text)}</title></circle>'
        for mark in marks
    )
    source = f"data:image/png;base64,{base64.b64encode(png).decode()}"
    return (
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}"><image width="{WIDTH}" height="{HEIGHT}" href="{source}"/>{shown}</svg>'
    )


def _note(text: str) -> str:
    return f'<p class="note">{html.escape(text)}</p>'


def _first(comparison: Comparison) -> str:
    """The run on top of the table, in words."""
    top = comparison.frame.head(1)
    row: dict[str, Any] = top.to_dict("records")[0]  # type: ignore[assignment]
    metric = comparison.metric
    better = metric.drop(0.0, row[metric.of("drop")]) + 0.0
    differs = ", ".join(f"{name}={cells(top[name])[0]}" for name in comparison.varying)
    named = f"<strong>{html.escape(row['run'])}</strong>" + (f" ({html.escape(differs)})" if differs else "")
    numbers = (
        f"int8 at {metric.text(row[f'val/int8_{metric.name}'])} on validation, by which it is chosen, and at "
        f"{metric.text(row[f'int8/{metric.name}'])} on test ({better:+.2f} {metric.step} against fp32), "
        f"{row['int8/latency_ms']:.2f} ms ({row['speedup']:.2f} times as fast as fp32), "
        f"{row['int8/size_mb']:.2f} MB ({row['compression']:.2f} times smaller)."
    )
    limit = f"No run loses {comparison.max_drop_pct:g} {metric.step} or less on validation; the best one is "
    lead = "First: " if row["within_max_drop"] else limit
    return f'<p class="first">{lead}{named}: {numbers}</p>'
