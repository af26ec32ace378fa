"""What the browser shows first: views of an experiment's runs, kept where MLflow's UI looks for them.

A view is a tag of the experiment, `mlflow.sharedViewState.KEY`; a link opens it with `viewStateShareKey=KEY`. It has a
name, stands in the menu of views, and has its state packed under `state`. A UI that does not know it shows the runs as
it always does.
"""

from __future__ import annotations

import base64
import colorsys
import json
import time
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from pipeline.tasks import ACCURACY, Metric

_TAG = "mlflow.sharedViewState."
RESULTS = "results"
# When that view was drawn up, which the menu shows: a constant, so that equal views have equal tags.
_DRAWN_UP_MS = 1764547200000

_VARYING = ("backend.name", "qat.epochs", "seed")
_LATENCY = "int8/latency_ms"
_ALSO = ("model.name", "dataset.name")
# A run's colour in the charts, which cannot colour by a parameter: the backend is the hue.
COLOR_TAG = "mlflow.runColor"
_HUES = {"fbgemm": 0.58, "qnnpack": 0.07, "x86": 0.38, "onednn": 0.8}
_NAME_COLUMN, _NAME_PIXELS = "attributes.`Run Name`", 240
_SECTION = "results"


def _metrics(metric: Metric) -> tuple[str, ...]:
    """What runs are shown with; what is looked for first stands on the left, in sight without scrolling."""
    return (
        *(f"val/{form}_{metric.name}" for form in ("int8", "fp32")),
        *(f"{form}/{metric.name}" for form in ("int8", "fp32")),
        *(metric.of("drop"), _LATENCY, "speedup", "int8/size_mb", "compression", "fp32/latency_ms"),
        *(f"{form}/{metric.of(end)}" for form in ("int8", "fp32") for end in ("ci_low", "ci_high")),
        *(metric.of("drop_ci_low"), metric.of("drop_ci_high")),
    )


@dataclass(frozen=True)
class View:
    """A view as an experiment keeps it: the key that a link has, and the tag."""

    key: str
    value: str

    @property
    def tag(self) -> str:
        return f"{_TAG}{self.key}"


def results() -> View:
    """All runs, the newest first, the jobs of a sweep under their parent."""
    return _view(RESULTS, "All runs", _DRAWN_UP_MS, _VARYING, ACCURACY, orderByKey="attributes.start_time")


def of_sweep(sweep_id: str, name: str, parent_run_id: str, varying: Sequence[str], metric: Metric = ACCURACY) -> View:
    """The jobs of one sweep, the best on the validation part first: under a parent, they would not be in the charts.

    Args:
        sweep_id: becomes the view's key.
        name: of the sweep.
        parent_run_id: of the sweep's run.
        varying: the parameters that the jobs differ in.
        metric: by which they are judged.
    """
    jobs = f"tags.`mlflow.parentRunId` = '{parent_run_id}'"
    order = {"searchFilter": jobs, "orderByKey": f"metrics.`{_chosen_by(metric)}`"}
    ascending = not metric.higher_is_better
    return _view(sweep_id, name, time.time_ns() // 1_000_000, varying or _VARYING, metric, ascending, **order)


def color(backend: str, run_name: str) -> str:
    """The colour of a run: its hue is the backend's, and how light it is tells it from others of that backend."""
    lightness = 0.3 + 0.4 * zlib.crc32(run_name.encode(errors="surrogateescape")) / 2**32
    rgb = colorsys.hls_to_rgb(_HUES.get(backend, 0.0), lightness, 0.8)
    return "#" + "".join(f"{round(255 * part):02x}" for part in rgb)


def _chosen_by(metric: Metric) -> str:
    return f"val/int8_{metric.name}"


def _view(
    key: str,
    name: str,
    created_ms: int,
    varying: Sequence[str],
    metric: Metric,
    ascending: bool = False,
    **order: str,
) -> View:
    columns = [
        *(f"params.`{name}`" for name in varying),
        *(f"metrics.`{name}`" for name in _metrics(metric)),
        *(f"params.`{name}`" for name in _ALSO if name not in varying),
    ]
    state = {
        **order,
        "orderByAsc": ascending,
        "selectedColumns": columns,
        "columnOrder": [_NAME_COLUMN, *columns],
        "columnWidths": {_NAME_COLUMN: _NAME_PIXELS} | {one: 40 + 7 * len(one.split("`")[1]) for one in columns},
        "runsHiddenMode": "SHOW_ALL",
        "compareRunCharts": _charts(varying, metric),
        "compareRunSections": [{"uuid": _SECTION, "name": "Results", "display": True, "isReordered": True}],
        "isAccordionReordered": True,  # or the sections are sorted by name
        "hideEmptyCharts": True,
    }
    # As the UI packs it: JSON, zlib, Base64.
    packed = base64.b64encode(zlib.compress(json.dumps(state, separators=(",", ":")).encode())).decode()
    return View(key, json.dumps({"name": name, "createdAt": created_ms, "state": f"deflate;{packed}"}))


def _charts(varying: Sequence[str], metric: Metric) -> list[dict[str, Any]]:
    """The metric, on the validation part, against latency and epochs; and what varies beside what came out."""
    value = {"key": _chosen_by(metric), "type": "METRIC"}
    charts: list[dict[str, Any]] = [
        {"type": "SCATTER", "xaxis": {"key": _LATENCY, "type": "METRIC"}, "yaxis": value},
        {"type": "SCATTER", "xaxis": {"key": "qat.epochs", "type": "PARAM"}, "yaxis": value},
        {"type": "PARALLEL", "selectedParams": list(varying), "selectedMetrics": [_LATENCY, _chosen_by(metric)]},
    ]
    return [
        {"uuid": f"{_SECTION}-{number}", "metricSectionId": _SECTION, "runsCountToCompare": 100, **chart}
        for number, chart in enumerate(charts)
    ]
