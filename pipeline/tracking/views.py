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

_TAG = "mlflow.sharedViewState."
RESULTS = "results"
# When that view was drawn up, which the menu shows: a constant, so that equal views have equal tags.
_DRAWN_UP_MS = 1764547200000

_VARYING = ("backend.name", "qat.epochs", "seed")
_ACCURACY, _LATENCY = "int8/accuracy_pct", "int8/latency_ms"
_CHOSEN_BY = "val/int8_accuracy_pct"
# What is looked for first stands on the left, in sight without scrolling.
_METRICS = (
    *(_CHOSEN_BY, "val/fp32_accuracy_pct", _ACCURACY, "fp32/accuracy_pct", "accuracy_drop_pct"),
    *(_LATENCY, "speedup", "int8/size_mb", "compression", "fp32/latency_ms"),
    *("int8/accuracy_ci_low_pct", "int8/accuracy_ci_high_pct"),
    *("fp32/accuracy_ci_low_pct", "fp32/accuracy_ci_high_pct"),
    *("accuracy_drop_ci_low_pct", "accuracy_drop_ci_high_pct"),
)
_ALSO = ("model.name", "dataset.name")
# A run's colour in the charts, which cannot colour by a parameter: the backend is the hue.
COLOR_TAG = "mlflow.runColor"
_HUES = {"fbgemm": 0.58, "qnnpack": 0.07, "x86": 0.38, "onednn": 0.8}
_NAME_COLUMN, _NAME_PIXELS = "attributes.`Run Name`", 240
_SECTION = "results"


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
    return _view(RESULTS, "All runs", _DRAWN_UP_MS, _VARYING, orderByKey="attributes.start_time")


def of_sweep(sweep_id: str, name: str, parent_run_id: str, varying: Sequence[str]) -> View:
    """The jobs of one sweep, the best on the validation part first: under a parent, they would not be in the charts.

    Args:
        sweep_id: becomes the view's key.
        name: of the sweep.
        parent_run_id: of the sweep's run.
        varying: the parameters that the jobs differ in.
    """
    jobs = f"tags.`mlflow.parentRunId` = '{parent_run_id}'"
    order = {"searchFilter": jobs, "orderByKey": f"metrics.`{_CHOSEN_BY}`"}
    return _view(sweep_id, name, time.time_ns() // 1_000_000, varying or _VARYING, **order)


def color(backend: str, run_name: str) -> str:
    """The colour of a run: its hue is the backend's, and how light it is tells it from others of that backend."""
    lightness = 0.3 + 0.4 * zlib.crc32(run_name.encode(errors="surrogateescape")) / 2**32
    rgb = colorsys.hls_to_rgb(_HUES.get(backend, 0.0), lightness, 0.8)
    return "#" + "".join(f"{round(255 * part):02x}" for part in rgb)


def _view(key: str, name: str, created_ms: int, varying: Sequence[str], **order: str) -> View:
    columns = [
        *(f"params.`{name}`" for name in varying),
        *(f"metrics.`{name}`" for name in _METRICS),
        *(f"params.`{name}`" for name in _ALSO if name not in varying),
    ]
    state = {
        **order,
        "orderByAsc": False,
        "selectedColumns": columns,
        "columnOrder": [_NAME_COLUMN, *columns],
        "columnWidths": {_NAME_COLUMN: _NAME_PIXELS} | {one: 40 + 7 * len(one.split("`")[1]) for one in columns},
        "runsHiddenMode": "SHOW_ALL",
        "compareRunCharts": _charts(varying),
        "compareRunSections": [{"uuid": _SECTION, "name": "Results", "display": True, "isReordered": True}],
        "isAccordionReordered": True,  # or the sections are sorted by name
        "hideEmptyCharts": True,
    }
    # As the UI packs it: JSON, zlib, Base64.
    packed = base64.b64encode(zlib.compress(json.dumps(state, separators=(",", ":")).encode())).decode()
    return View(key, json.dumps({"name": name, "createdAt": created_ms, "state": f"deflate;{packed}"}))


def _charts(varying: Sequence[str]) -> list[dict[str, Any]]:
    """Accuracy, on the validation part, against latency and epochs; and what varies beside what came out."""
    accuracy = {"key": _CHOSEN_BY, "type": "METRIC"}
    charts: list[dict[str, Any]] = [
        {"type": "SCATTER", "xaxis": {"key": _LATENCY, "type": "METRIC"}, "yaxis": accuracy},
        {"type": "SCATTER", "xaxis": {"key": "qat.epochs", "type": "PARAM"}, "yaxis": accuracy},
        {"type": "PARALLEL", "selectedParams": list(varying), "selectedMetrics": [_LATENCY, _CHOSEN_BY]},
    ]
    return [
        {"uuid": f"{_SECTION}-{number}", "metricSectionId": _SECTION, "runsCountToCompare": 100, **chart}
        for number, chart in enumerate(charts)
    ]
