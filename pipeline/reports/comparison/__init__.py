"""The comparison of finished runs: which one to ship, as a table, a page, plots and a CSV."""

from __future__ import annotations

from pathlib import Path

from pipeline.host.files import write_and_rename
from pipeline.reports.comparison.seeds import over_seeds
from pipeline.reports.comparison.table import Comparison


def write_comparison(comparison: Comparison, folder: Path, title: str = "Comparison") -> list[Path]:
    """Write the page, the CSV and the plots into `folder`, each complete or not at all, and give their paths."""
    from pipeline.reports.comparison import page, plots  # matplotlib is needed for files alone

    folder.mkdir(parents=True, exist_ok=True)
    tables, summary = {"comparison.csv": comparison.frame}, over_seeds(comparison)
    if summary is not None:
        tables["over_seeds.csv"] = summary.frame
    judged_by = comparison.metric.stem
    drawings = {f"{judged_by}_latency.png": plots.draw_latency}
    if plots.epoch_lines(comparison):
        drawings[f"{judged_by}_epochs.png"] = plots.draw_epochs
    for name, table in tables.items():
        with write_and_rename(folder / name) as temporary:
            table.to_csv(temporary, index=False)
    pictures = {}
    for name, draw in drawings.items():
        with write_and_rename(folder / name) as temporary:
            marks = draw(comparison, temporary)
            pictures[name] = page.picture(temporary.read_bytes(), marks)
    with write_and_rename(folder / "comparison.html") as temporary:
        temporary.write_text(page.page(comparison, title, pictures), encoding="utf-8")
    # What an earlier comparison left here would be taken for one of these runs.
    for name in {f"{judged_by}_epochs.png", "over_seeds.csv"} - {*tables, *drawings}:
        (folder / name).unlink(missing_ok=True)
    return [folder / name for name in ("comparison.html", *tables, *drawings)]
