"""The comparison of finished runs: which one to ship, as a table, a page, plots and a CSV."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pipeline.host.files import write_and_rename
from pipeline.reports.comparison.points import epoch_lines
from pipeline.reports.comparison.seeds import over_seeds
from pipeline.reports.comparison.table import MAX_DROP_PCT, compare
from pipeline.reports.tracked_run import TrackedRun

_PAGE = "comparison.html"
_CSV = "comparison.csv"
_SEEDS_CSV = "over_seeds.csv"
_ACCURACY_LATENCY = "accuracy_latency.png"
_ACCURACY_EPOCHS = "accuracy_epochs.png"


def write_comparison(
    runs: Sequence[TrackedRun], folder: Path, *, title: str = "Comparison", max_drop_pct: float = MAX_DROP_PCT
) -> list[Path]:
    """Write the page, the CSV and the plots into `folder`, each complete or not at all, and give their paths.

    Raises:
        UserError: when no run finished with all its metrics.
    """
    from pipeline.reports.comparison.page import page  # plotly and matplotlib are needed for files alone
    from pipeline.reports.comparison.plots import draw_accuracy_epochs, draw_accuracy_latency

    comparison = compare(runs, max_drop_pct)
    folder.mkdir(parents=True, exist_ok=True)
    written = [folder / _PAGE, folder / _CSV, folder / _ACCURACY_LATENCY]
    with write_and_rename(folder / _PAGE) as temporary:
        temporary.write_text(page(comparison, title), encoding="utf-8")
    with write_and_rename(folder / _CSV) as temporary:
        comparison.frame.to_csv(temporary, index=False)
    with write_and_rename(folder / _ACCURACY_LATENCY) as temporary:
        draw_accuracy_latency(comparison, temporary)
    # What an earlier comparison left here would be taken for one of these runs.
    for name in (_ACCURACY_EPOCHS, _SEEDS_CSV):
        (folder / name).unlink(missing_ok=True)
    if epoch_lines(comparison):
        with write_and_rename(folder / _ACCURACY_EPOCHS) as temporary:
            draw_accuracy_epochs(comparison, temporary)
        written.append(folder / _ACCURACY_EPOCHS)
    summary = over_seeds(comparison)
    if summary is not None:
        with write_and_rename(folder / _SEEDS_CSV) as temporary:
            summary.frame.to_csv(temporary, index=False)
        written.append(folder / _SEEDS_CSV)
    return written
