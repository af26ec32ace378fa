"""The views that MLflow's UI shows first: the form that it reads, from its release 3.13 on, and what they show."""

from __future__ import annotations

import base64
import json
import zlib
from pathlib import Path
from typing import Any

import pytest

from pipeline.host.files import PROJECT_ROOT
from pipeline.settings.config import TrackingConfig
from pipeline.tracking.pages import run_page, way_to_view
from pipeline.tracking.views import View, color, of_sweep, results

SWEEP = of_sweep("0123abcd", "seed=0,1", "f" * 32, ["backend.name", "qat.epochs"])


def unpacked(view: View) -> dict[str, Any]:
    """The state as 3.15 and later read it: packed as zlib of JSON, in Base64, beside a name and a time."""
    content = json.loads(view.value)
    assert isinstance(content["name"], str)
    assert isinstance(content["createdAt"], int)
    kind, packed = content["state"].split(";")
    assert kind == "deflate"
    return dict(json.loads(zlib.decompress(base64.b64decode(packed))))


@pytest.mark.parametrize("view", [results(), SWEEP], ids=["results", "sweep"])
def test_tag_holds_the_same_state_for_old_and_new_releases_and_fits_in_a_tag_of_both(view: View) -> None:
    beside, state = json.loads(view.value), unpacked(view)
    # Without one of these the page of 3.13 stays empty.
    needed = {
        *("selectedColumns", "runsExpanded", "runsPinned", "runsHidden", "runsVisibilityMap", "runsHiddenMode"),
        *("compareRunCharts", "compareRunSections", "viewMaximized", "runListHidden", "isAccordionReordered"),
        *("groupBy", "groupsExpanded", "autoRefreshEnabled", "useGroupedValuesInCharts", "hideEmptyCharts"),
        "globalLineChartConfig",
    }
    assert beside.keys() >= needed
    assert {key: beside[key] for key in state if key in beside} == {
        key: value for key, value in state.items() if key not in ("columnOrder", "columnWidths")
    }
    assert len(view.value) < 5000
    assert view.tag == f"mlflow.sharedViewState.{view.key}"


def test_columns_begin_with_what_varies_then_accuracy_on_the_validation_part_then_on_the_test_part() -> None:
    state = unpacked(results())
    names = [column.split("`")[1] for column in state["selectedColumns"]]
    assert names[:4] == ["backend.name", "qat.epochs", "seed", "val/int8_accuracy_pct"]
    wanted = (
        "int8/accuracy_pct",
        "fp32/accuracy_pct",
        "accuracy_drop_pct",
        "int8/latency_ms",
        "speedup",
        "int8/size_mb",
    )
    assert [names.index(name) for name in wanted] == sorted(names.index(name) for name in wanted)
    assert set(names) >= {"int8/accuracy_ci_low_pct", "int8/accuracy_ci_high_pct", "accuracy_drop_ci_low_pct"}
    assert state["columnOrder"][1:] == state["selectedColumns"]
    assert state["columnWidths"].keys() == set(state["columnOrder"])
    assert state["orderByKey"] == "attributes.start_time"  # otherwise children do not stand under their parent


def test_charts_are_accuracy_against_latency_and_epochs_and_what_varies_side_by_side() -> None:
    (latency, epochs, parallel), (section,) = (unpacked(SWEEP)[f"compareRun{what}"] for what in ("Charts", "Sections"))
    assert (latency["type"], epochs["type"], parallel["type"]) == ("SCATTER", "SCATTER", "PARALLEL")
    assert latency["yaxis"] == epochs["yaxis"] == {"key": "val/int8_accuracy_pct", "type": "METRIC"}
    assert latency["xaxis"] == {"key": "int8/latency_ms", "type": "METRIC"}
    assert epochs["xaxis"] == {"key": "qat.epochs", "type": "PARAM"}
    assert parallel["selectedParams"] == ["backend.name", "qat.epochs"]
    assert {chart["metricSectionId"] for chart in (latency, epochs, parallel)} == {section["uuid"]}
    assert len({chart["uuid"] for chart in (latency, epochs, parallel)}) == 3


def test_view_of_a_sweep_shows_its_jobs_alone_the_best_on_the_validation_part_first() -> None:
    state = unpacked(SWEEP)
    assert state["searchFilter"] == f"tags.`mlflow.parentRunId` = '{'f' * 32}'"
    assert (state["orderByKey"], state["orderByAsc"]) == ("metrics.`val/int8_accuracy_pct`", False)


def test_runs_of_one_backend_have_one_hue_and_different_colors() -> None:
    blue = {color("fbgemm", f"seed={seed}") for seed in range(5)}
    assert len(blue) == 5
    assert all(int(one[5:7], 16) > int(one[3:5], 16) > int(one[1:3], 16) for one in blue)
    assert all(int(one[1:3], 16) > int(one[5:7], 16) for one in (color("qnnpack", str(seed)) for seed in range(5)))


@pytest.mark.parametrize(
    ("uri", "outputs", "way"),
    [
        (None, PROJECT_ROOT / "outputs", "make ui    # then open http://127.0.0.1:5000"),
        (
            None,
            Path("/a b"),
            "mlflow ui --backend-store-uri 'sqlite:////a b/mlflow.db'    # then open http://127.0.0.1:5000",
        ),
        ("http://host:5001/", PROJECT_ROOT / "outputs", "open http://host:5001"),
    ],
)
def test_way_to_a_view_is_what_serves_the_store_and_a_link_with_its_key(
    uri: str | None, outputs: Path, way: str
) -> None:
    link = "/#/experiments/7/runs?workflowType=machine_learning&viewStateShareKey=results"
    assert way_to_view(TrackingConfig(uri=uri), outputs, "7", "results") == f"{way}{link}"


def test_no_way_is_told_when_no_server_of_mlflow_is_known_to_show_the_store() -> None:
    uri = "postgresql://host/db"
    assert way_to_view(TrackingConfig(uri=uri), PROJECT_ROOT, "7", "results") == run_page(uri, "7", "0") == ""
