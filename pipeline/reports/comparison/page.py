"""comparison.html: plots and a sortable table in one file that fetches nothing.

Its content security policy has the browser itself refuse any request that leaves the file.
"""

from __future__ import annotations

import html
from collections.abc import Mapping
from typing import Any

from plotly.offline import get_plotlyjs

from pipeline.reports.comparison.figures import accuracy_epochs, accuracy_latency
from pipeline.reports.comparison.seeds import over_seeds
from pipeline.reports.comparison.table import COLUMNS, Comparison
from pipeline.reports.comparison.text import SEEDS_NOTE, cell_text, seeds_cells

_POLICY = (
    "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data: blob:; form-action 'none'"
)
# The buttons are named one by one: plotly's own choice has one that uploads the plot.
_PLOTLY = {
    "displaylogo": False,
    "responsive": True,
    "showSendToCloud": False,
    "modeBarButtons": [["toImage", "zoom2d", "pan2d", "zoomIn2d", "zoomOut2d", "resetScale2d"]],
}
# The page is wide enough as it is; the CSV has them.
_NOT_SHOWN = (
    *("val/images", "val/fp32_accuracy_pct"),
    *("fp32/accuracy_ci_low_pct", "fp32/accuracy_ci_high_pct", "fp32/latency_p90_ms", "test_images"),
)

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
.plain thead th { padding: .35rem .5rem; }
thead button { font: inherit; font-weight: 600; color: inherit; background: none; border: 0; padding: .35rem .5rem;
  text-align: inherit; width: 100%; cursor: pointer; }
thead button:hover, tbody tr:hover { background: #f3f6f9; }
th[aria-sort=ascending] button::after { content: " ▲"; }
th[aria-sort=descending] button::after { content: " ▼"; }
thead .number button { max-width: 11ch; margin-left: auto; display: block; }
.number { text-align: right; }
td.number { white-space: nowrap; }
.differs { font-weight: 600; }
.name { min-width: 16ch; max-width: 40ch; overflow-wrap: break-word; }
.beyond td { color: #767676; }
details { margin-top: 1.5rem; }
@media print { thead button { padding: .2rem; } }
"""

_SORT = """
const table = document.getElementById("runs");
for (const [column, heading] of table.querySelectorAll("thead th").entries()) {
  heading.querySelector("button").addEventListener("click", () => {
    const direction = heading.getAttribute("aria-sort") === "ascending" ? -1 : 1;
    for (const other of table.querySelectorAll("thead th")) other.removeAttribute("aria-sort");
    heading.setAttribute("aria-sort", direction === 1 ? "ascending" : "descending");
    const key = row => row.cells[column].dataset.value;
    const numeric = heading.classList.contains("number");
    const body = table.tBodies[0];
    const rows = Array.from(body.rows).sort((a, b) => {
      const [x, y] = [key(a), key(b)];
      if (x === "" || y === "") return (x === "") - (y === "");
      return direction * (numeric ? x - y : x.localeCompare(y, "en", { numeric: true }));
    });
    body.append(...rows);
  });
}
"""


def page(comparison: Comparison, title: str) -> str:
    """The whole page as HTML."""
    epochs = accuracy_epochs(comparison)
    known = comparison.frame["val/images"].notna()
    interval = "Vertical bars: 95 % Wilson interval over the validation images. " if known.any() else ""
    parts = [
        f"<h1>{html.escape(title)}</h1>",
        f'<p class="note">{html.escape(comparison.counted)}</p>',
        _first(comparison),
        "<h2>Accuracy against latency</h2>",
        "<p class='note'>Accuracy on the validation part. "
        "Filled: int8, open: fp32 of the same run, joined. Area: size of the model. "
        f"{interval}Horizontal bars: from the median latency to the 90th percentile. "
        "Dashed: the Pareto front, the models that no other one beats.</p>",
        _figure_html(accuracy_latency(comparison), "accuracy-latency"),
    ]
    if epochs is not None:
        parts += [
            "<h2>int8 accuracy against QAT epochs</h2>",
            f"<p class='note'>A line joins runs that differ in nothing but their QAT epochs. {interval}"
            "Lines are moved sideways a little, so that their bars do not cover each other.</p>",
            _figure_html(epochs, "accuracy-epochs"),
        ]
    parts += ["<h2>Runs</h2>", _table(comparison), _over_seeds(comparison), _shared(comparison.shared)]
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{html.escape(title)}</title>\n<style>{_STYLE}</style>\n<script>{get_plotlyjs()}</script>\n</head>\n"
        "<body>\n<main>\n" + "\n".join(parts) + f"\n</main>\n<script>{_SORT}</script>\n</body>\n</html>\n"
    )


def _first(comparison: Comparison) -> str:
    """The run on top of the table, in words."""
    row: dict[str, Any] = {str(name): value for name, value in comparison.frame.iloc[0].items()}
    differs = ", ".join(f"{name}={cell_text(row[name])}" for name in comparison.varying)
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


def _figure_html(figure: Any, name: str) -> str:
    return str(figure.to_html(full_html=False, include_plotlyjs=False, div_id=name, config=_PLOTLY))


def _table(comparison: Comparison) -> str:
    frame = comparison.frame
    columns = [column for column in COLUMNS if column.name not in _NOT_SHOWN and frame[column.name].notna().any()]
    shown: list[tuple[str, str, int | None]] = [(name, name, None) for name in comparison.varying]
    shown += [(column.name, column.heading, column.digits) for column in columns]
    shown.append(("on_front", "on the front", None))
    shown.insert(len(shown) if comparison.told_apart else len(comparison.varying), ("run", "run", None))
    numeric = {name for name, _, _ in shown if frame[name].dtype.kind in "if"}
    kinds = {name: "number" if name in numeric else "name" if name == "run" else "" for name, _, _ in shown}
    for name in comparison.varying:
        kinds[name] += " differs"
    head = "".join(
        f'<th scope="col" class="{kinds[name]}"><button type="button">{html.escape(heading)}</button></th>'
        for name, heading, _ in shown
    )
    body = []
    for row in frame.to_dict("records"):
        cells = []
        for name, _, digits in shown:
            text = ("yes" if row[name] else "no") if name == "on_front" else cell_text(row[name], digits)
            value = cell_text(row[name]) if name != "on_front" else text
            if name in numeric:
                value = "" if row[name] != row[name] else repr(float(row[name]))
            cells.append(f'<td class="{kinds[name]}" data-value="{html.escape(value)}">{html.escape(text)}</td>')
        beyond = "" if row["within_max_drop"] else ' class="beyond"'
        body.append(f"<tr{beyond}>{''.join(cells)}</tr>")
    note = f"{comparison.rule} Grey: beyond those {comparison.max_drop_pct:g} points. A click on a heading sorts by it."
    return (
        f'<p class="note" id="rule">{html.escape(note)}</p>\n'
        f'<div class="scroll" tabindex="0"><table id="runs" aria-describedby="rule">\n<thead><tr>{head}</tr></thead>\n'
        f"<tbody>\n{chr(10).join(body)}\n</tbody></table></div>"
    )


def _over_seeds(comparison: Comparison) -> str:
    summary = over_seeds(comparison)
    if summary is None:
        return ""
    headings, rows = seeds_cells(summary)
    kinds = ["" if index < len(summary.varying) else ' class="number"' for index in range(len(headings))]
    head = "".join(
        f'<th scope="col"{kind}>{html.escape(cell)}</th>' for kind, cell in zip(kinds, headings, strict=True)
    )
    body = "\n".join(
        "<tr>" + "".join(f"<td{kind}>{html.escape(cell)}</td>" for kind, cell in zip(kinds, row, strict=True)) + "</tr>"
        for row in rows
    )
    return (
        f"<h2>Over seeds</h2>\n<p class='note'>Runs that differ in their seed alone: {SEEDS_NOTE}.</p>\n"
        f'<div class="scroll" tabindex="0"><table id="over-seeds" class="plain">\n<thead><tr>{head}</tr></thead>\n'
        f"<tbody>\n{body}\n</tbody></table></div>"
    )


def _shared(shared: Mapping[str, str]) -> str:
    if not shared:
        return ""
    rows = "".join(
        f'<tr><th scope="row">{html.escape(name)}</th><td>{html.escape(str(value))}</td></tr>'
        for name, value in sorted(shared.items())
    )
    return f"<details><summary>What all of them share ({len(shared)} settings)</summary><table>{rows}</table></details>"
