"""Runs that differ in their seed alone, summed up: mean and sample standard deviation."""

from __future__ import annotations

import dataclasses
import math
import statistics
from collections.abc import Callable
from pathlib import Path

import mlflow
import pandas as pd
import pytest

from pipeline.reports.comparison import write_comparison
from pipeline.reports.comparison.seeds import OverSeeds, over_seeds
from pipeline.reports.comparison.table import compare
from pipeline.reports.comparison.text import text_table
from pipeline.reports.tracked_run import TrackedRun
from pipeline.run.request import Request
from pipeline.sweeps.jobs import sweep_session
from tests.test_comparison import metrics, tracked


def seeded(backend: str, seed: int, accuracy: float, name: str = "", **others: float) -> TrackedRun:
    parameters = {"backend.name": backend, "seed": str(seed)}
    return tracked(name or f"{backend}-{seed}", metrics(accuracy, **others), parameters=parameters)


THREE = [seeded("fbgemm", seed, accuracy) for seed, accuracy in enumerate((98.0, 98.5, 99.3))]
ALONE = seeded("qnnpack", 0, 97.0)


def summary(runs: list[TrackedRun]) -> OverSeeds:
    found = over_seeds(compare(runs))
    assert found is not None
    return found


def test_mean_and_sample_deviation_are_those_of_the_definition_when_runs_differ_in_their_seed() -> None:
    (row,) = summary(THREE).frame.to_dict("records")
    assert row["seeds"] == 3
    assert row["int8_accuracy_mean_pct"] == pytest.approx(statistics.mean([98.0, 98.5, 99.3]))
    assert row["int8_accuracy_std_pct"] == pytest.approx(statistics.stdev([98.0, 98.5, 99.3]))
    assert row["accuracy_drop_mean_pct"] == pytest.approx(99.0 - statistics.mean([98.0, 98.5, 99.3]))
    assert row["speedup_std"] == pytest.approx(0)


def test_groups_are_the_runs_that_agree_in_all_else_and_a_single_one_has_no_deviation() -> None:
    found = summary([*THREE, ALONE])
    assert found.varying == ("backend.name",)
    assert dict(zip(found.frame["backend.name"], found.frame["seeds"], strict=True)) == {"fbgemm": 3, "qnnpack": 1}
    assert "97.00 ± –" in text_table(compare([*THREE, ALONE]))
    assert found.metrics() == {}


def test_run_that_was_made_twice_counts_as_one_seed() -> None:
    again = seeded("fbgemm", 0, 98.0, name="again")
    assert summary([*THREE, again]).metrics() == summary(THREE).metrics()


def test_newest_alone_counts_when_a_seed_has_several_runs_of_one_result() -> None:
    tags = {"artifact.evaluate": "evaluate-0"}
    newest, oldest = (dataclasses.replace(seeded("fbgemm", 3, 97.0 + i, name=f"{i}"), tags=tags) for i in range(2))
    assert summary([newest, *THREE, oldest]).metrics() == summary([newest, *THREE]).metrics()


def test_runs_with_and_without_controls_are_one_group_but_what_a_seed_lacks_is_left_open() -> None:
    parameters = {"backend.name": "fbgemm", "seed": "7", "evaluate.fake_quantized": "True"}
    full = tracked("full", metrics(98.0, **{"qat_fake/accuracy_pct": 98.1}), parameters=parameters)
    (row,) = summary([*THREE, full]).frame.to_dict("records")
    assert row["seeds"] == 4
    assert math.isnan(row["qat_fake_accuracy_mean_pct"])


@pytest.mark.parametrize(
    "runs",
    [
        pytest.param([tracked("a"), tracked("b")], id="no seed differs"),
        pytest.param([seeded("fbgemm", 0, 98.0), seeded("qnnpack", 1, 98.0)], id="all else differs too"),
    ],
)
def test_nothing_is_summed_up_when_no_two_runs_differ_in_their_seed_alone(
    runs: list[TrackedRun], tmp_path: Path
) -> None:
    assert over_seeds(compare(runs)) is None
    assert "Over seeds" not in text_table(compare(runs))
    assert "over_seeds.csv" not in {path.name for path in write_comparison(runs, tmp_path)}


def test_only_group_is_given_as_metrics_with_the_controls_that_are_there() -> None:
    runs = [seeded("x86", seed, 98.0 + seed, **{"ptq_int8/accuracy_pct": 97.0}) for seed in range(2)]
    found = summary(runs).metrics()
    assert found["over_seeds/seeds"] == 2
    assert found["over_seeds/int8_accuracy_mean_pct"] == pytest.approx(98.5)
    assert found["over_seeds/ptq_int8_accuracy_mean_pct"] == 97.0
    assert "over_seeds/qat_fake_accuracy_mean_pct" not in found


def test_summary_is_in_text_page_and_csv_and_goes_with_the_next_comparison(tmp_path: Path) -> None:
    runs = [*THREE, ALONE]
    written = {path.name: path for path in write_comparison(runs, tmp_path)}
    assert '<table id="over-seeds"' in written["comparison.html"].read_text()
    pd.testing.assert_frame_equal(pd.read_csv(written["over_seeds.csv"]), summary(runs).frame, check_dtype=False)
    assert "| fbgemm         |       3 |" in text_table(compare(runs), "github")
    write_comparison([ALONE], tmp_path)
    assert not (tmp_path / "over_seeds.csv").exists()


def test_markdown_keeps_the_summary_when_its_rows_are_cut() -> None:
    markdown = text_table(compare([seeded("fbgemm", seed, 98.0) for seed in range(150)]), "github", max_characters=5000)
    assert len(markdown) <= 5000
    assert "of 150 rows" in markdown
    assert "Over seeds" in markdown.splitlines()[-5]


def test_seeds_of_qat_alone_are_seeds_too() -> None:
    runs = [
        tracked(f"q{seed}", metrics(98.0 + seed), parameters={"seed": "0", "qat.seed": str(seed)}) for seed in range(3)
    ]
    (row,) = summary(runs).frame.to_dict("records")
    assert (row["seeds"], row["int8_accuracy_mean_pct"]) == (3, pytest.approx(99.0))


def child_runs(client: mlflow.MlflowClient, parent: mlflow.entities.Run, runs: list[TrackedRun]) -> None:
    """Log runs as the jobs of a sweep would."""
    for run in runs:
        tags = {"mlflow.parentRunId": parent.info.run_id}
        child = client.create_run(parent.info.experiment_id, tags=tags, run_name=run.name).info.run_id
        for name, value in run.parameters.items():
            client.log_param(child, name, value)
        for name, number in run.metrics.items():
            client.log_metric(child, name, number)
        client.set_terminated(child)


def test_best_job_of_a_sweep_is_the_one_that_validation_says_when_the_test_part_says_another(
    small_request: Callable[..., Request], outputs: Path
) -> None:
    lucky = {"val/int8_accuracy_pct": 97.0, "val/accuracy_drop_pct": 2.0}
    runs = [seeded("fbgemm", 0, 98.9), seeded("qnnpack", 0, 99.9, **lucky)]
    with sweep_session(["backend=fbgemm,qnnpack"], [], small_request().config) as sweep:
        client = mlflow.MlflowClient(f"sqlite:///{outputs / 'mlflow.db'}")
        parent = client.get_run(str(sweep.parent_run_id))
        child_runs(client, parent, runs)
    assert client.get_run(parent.info.run_id).data.tags["sweep.best"] == "fbgemm-0"


def test_sweep_over_seeds_ends_with_its_summary_in_the_terminal_and_the_parent_run(
    small_request: Callable[..., Request], outputs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with sweep_session(["seed=0,1,2"], [], small_request().config) as sweep:
        client = mlflow.MlflowClient(f"sqlite:///{outputs / 'mlflow.db'}")
        parent = client.get_run(str(sweep.parent_run_id))
        child_runs(client, parent, THREE)
    assert "Over seeds" in capsys.readouterr().out
    parent = client.get_run(parent.info.run_id)
    assert parent.data.metrics == pytest.approx(summary(THREE).metrics())
    assert "Over seeds" in parent.data.tags["mlflow.note.content"]
    assert "over_seeds.csv" in {found.path for found in client.list_artifacts(parent.info.run_id)}
