"""comparison.html: plots and a sortable table in one file that fetches nothing.

Its content security policy has the browser itself refuse any request that leaves the file.
"""

from __future__ import annotations

import base64
import html
from collections.abc import Mapping, Sequence
from typing import Any

from pipeline.reports.comparison.plots import HEIGHT, WIDTH, Mark
from pipeline.reports.comparison.seeds import over_seeds
from pipeline.reports.comparison.table import COLUMNS, Comparison
from pipeline.reports.comparison.text import SEEDS_NOTE, cells, seeds_cells

_POLICY = "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data:; form-action 'none'"

_STYLE = """
:root { color-scheme: light; }
body { font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Liberation Sans", sans-serif; color: #222;
  background: #fff; max-width: 1280px; margin: 2rem auto; padding: 0 1.5rem; }
h1 { font-size: 1.75rem; line-height: 1.25; margin: 0 0 .25rem; overflow-wrap: anywhere; }
h2 { font-size: 1.2rem; margin: 2.5rem 0 .25rem; }
p { margin: .25rem 0; max-width: 75ch; }
.note { max-width: 100ch; }
.note, summary { color: #555; font-size: .9rem; }
.first { border-left: 4px solid #0072B2; padding: .25rem 0 .25rem 1rem; margin: 1.25rem 0; max-width: none; }
.scroll { overflow-x: auto; margin-top: .75rem; }
table { border-collapse: collapse; font-size: .875rem; font-variant-numeric: tabular-nums; }
th, td { padding: .35rem .5rem; border-bottom: 1px solid #e6e6e6; text-align: left; vertical-align: top; }
thead th { border-bottom: 2px solid #999; vertical-align: bottom; padding: 0; }
thead button { font: inherit; font-weight: 600; color: inherit; background: none; border: 0; padding: .35rem .5rem;
  text-align: inherit; width: 100%; cursor: pointer; }
thead button:hover, tbody tr:hover { background: #f3f6f9; }
th[aria-sort=ascending] button::after { content: " ▲"; }
th[aria-sort=descending] button::after { content: " ▼"; }
thead .number button { max-width: 11ch; margin-left: auto; display: block; }
.number, .spread { text-align: right; }
td.number, td.spread { white-space: nowrap; }
svg { display: block; width: 100%; max-width: 1000px; }
svg circle { fill: transparent; }
.differs { font-weight: 600; }
.name { min-width: 16ch; max-width: 40ch; overflow-wrap: break-word; }
.beyond td { color: #767676; }
details { margin-top: 1.5rem; }
@media print { thead button { padding: .2rem; } }
"""

_SORT = """
for (const table of document.querySelectorAll("table")) {
  const headings = Array.from(table.tHead.rows[0].cells);
  headings.forEach((heading, column) => heading.firstChild.addEventListener("click", () => {
    const direction = heading.getAttribute("aria-sort") === "ascending" ? -1 : 1;
    for (const other of headings) other.removeAttribute("aria-sort");
    heading.setAttribute("aria-sort", direction === 1 ? "ascending" : "descending");
    const compare = (x, y) => heading.classList.contains("number") ? x - y : x.localeCompare(y, "en", {numeric: true});
    const rows = Array.from(table.tBodies[0].rows).sort((a, b) => {
      const [x, y] = [a, b].map(row => row.cells[column].textContent);
      return x === "" || y === "" ? (x === "") - (y === "") : direction * compare(x, y);
    });
    table.tBodies[0].append(...rows);
  }));
}
"""


def page(comparison: Comparison, title: str, pictures: Mapping[str, str]) -> str:
    """The whole page as HTML; `pictures` are the plots, by the name of their file."""
    known = comparison.frame["val/images"].notna().any()
    interval = "Vertical bars: 95 % Wilson interval over the validation images. " if known else ""
    notes = {
        "accuracy_latency.png": (
            "Accuracy on the validation part. Filled: int8, open: fp32 of the same run, joined. Area: size of the "
            f"model. {interval}Horizontal bars: from the median latency to the 90th percentile. Dashed: the Pareto "
            "front, the models that no other one beats."
        ),
        "accuracy_epochs.png": (
            f"A line joins runs that differ in nothing but their QAT epochs. {interval}Lines are moved sideways a "
            "little, so that their bars do not cover each other."
        ),
    }
    parts = [f"<h1>{html.escape(title)}</h1>", _note(comparison.counted), _first(comparison)]
    for name, drawn in pictures.items():
        parts += [drawn, _note(notes[name])]
    parts += ["<h2>Runs</h2>", _runs(comparison)]
    summary = over_seeds(comparison)
    if summary is not None:
        headings, rows = seeds_cells(summary)
        kinds = [*("" for _ in summary.varying), "number", *("spread" for _ in summary.columns)]
        parts += ["<h2>Over seeds</h2>", _note(f"Runs that differ in their seed alone: {SEEDS_NOTE}.")]
        parts.append(_table("over-seeds", headings, rows, kinds))
    if comparison.shared:
        shared = _table("shared", ("setting", "value"), sorted(comparison.shared.items()), ("", ""))
        summed_up = f"What all of them share ({len(comparison.shared)} settings)"
        parts.append(f"<details><summary>{summed_up}</summary>{shared}</details>")
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{html.escape(title)}</title>\n<style>{_STYLE}</style>\n</head>\n"
        "<body>\n<main>\n" + "\n".join(parts) + f"\n</main>\n<script>{_SORT}</script>\n</body>\n</html>\n"
    )


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
    differs = ", ".join(f"{name}={cells(top[name])[0]}" for name in comparison.varying)
    named = f"<strong>{html.escape(row['run'])}</strong>" + (f" ({html.escape(differs)})" if differs else "")
    numbers = (
        f"int8 at {row['val/int8_accuracy_pct']:.2f} % on validation, by which it is chosen, and at "
        f"{row['int8/accuracy_pct']:.2f} % on test ({-row['accuracy_drop_pct'] + 0.0:+.2f} points against fp32), "
        f"{row['int8/latency_ms']:.2f} ms ({row['speedup']:.2f} times as fast as fp32), "
        f"{row['int8/size_mb']:.2f} MB ({row['compression']:.2f} times smaller)."
    )
    limit = f"No run loses {comparison.max_drop_pct:g} points or less on validation; the most accurate one is "
    lead = "First: " if row["within_max_drop"] else limit
    return f'<p class="first">{lead}{named}: {numbers}</p>'


def _runs(comparison: Comparison) -> str:
    """The table of all runs."""
    frame = comparison.frame.assign(on_front=comparison.frame["on_front"].map({True: "yes", False: "no"}))
    settings: dict[str, tuple[str, int | None]] = {name: (name, None) for name in comparison.varying}
    numbers: dict[str, tuple[str, int | None]] = {
        column.name: (column.heading, column.digits)
        for column in COLUMNS
        if column.heading and frame[column.name].notna().any()
    }
    run, front = {"run": ("run", None)}, {"on_front": ("on the front", None)}
    shown = settings | (numbers | front | run if comparison.told_apart else run | numbers | front)
    kinds = ["number" if frame[name].dtype.kind in "if" else "name" if name == "run" else "" for name in shown]
    kinds = [f"{kind} differs" if name in settings else kind for kind, name in zip(kinds, shown, strict=True)]
    headings = [heading for heading, _ in shown.values()]
    columns = [cells(frame[name], digits) for name, (_, digits) in shown.items()]
    beyond = ["" if within else "beyond" for within in frame["within_max_drop"]]
    rule = f"{comparison.rule} Grey: beyond those {comparison.max_drop_pct:g} points. A click on a heading sorts by it."
    return _note(rule) + _table("runs", headings, list(zip(*columns, strict=True)), kinds, beyond)


def _table(
    name: str,
    headings: Sequence[str],
    rows: Sequence[Sequence[str]],
    kinds: Sequence[str],
    kinds_of_rows: Sequence[str] | None = None,
) -> str:
    """A table that can be sorted, with a class for each column and for each row."""
    head = "".join(
        f'<th scope="col" class="{kind}"><button type="button">{html.escape(heading)}</button></th>'
        for kind, heading in zip(kinds, headings, strict=True)
    )
    body = []
    for kind_of_row, row in zip(kinds_of_rows or [""] * len(rows), rows, strict=True):
        told = "".join(f'<td class="{kind}">{html.escape(cell)}</td>' for kind, cell in zip(kinds, row, strict=True))
        body.append(f'<tr class="{kind_of_row}">{told}</tr>')
    lines = "\n".join(body)
    return (
        f'<div class="scroll" tabindex="0"><table id="{name}">\n<thead><tr>{head}</tr></thead>\n'
        f"<tbody>\n{lines}\n</tbody></table></div>"
    )
