"""Sweeps: killed and resumed, with failing jobs, in several processes; real processes, a real MLflow store."""

from __future__ import annotations

import csv
import json
import os
import random
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pipeline.commands.composition import compose_request
from pipeline.host.files import PROJECT_ROOT, sha256
from pipeline.run.request import Request
from pipeline.sweeps.jobs import sweep_session
from pipeline.sweeps.states import RUNNING, JobRecord, Sweep, sweep_id
from pipeline.tracking.views import View
from tests import forked
from tests.conftest import SMALL
from tests.test_tracking import client, runs
from tests.test_views import unpacked

TWO_JOBS = [*SMALL, "qat.schedule=constant", "qat.epochs=1,2"]
# What `make test-kills` asks for.
KILLS = int(os.environ.get("PIPELINE_TEST_KILLS", "1"))
PROCESSES = int(os.environ.get("PIPELINE_TEST_PROCESSES", "4"))
# What a clock measures differs from run to run.
TIMED = ("latency", "speedup", "seconds")


def command(outputs: Path, *overrides: str) -> list[str]:
    return [sys.executable, "-m", "pipeline", "-m", f"outputs={outputs}", *overrides]


def sweep(outputs: Path, *overrides: str) -> subprocess.CompletedProcess[str]:
    return forked.run(command(outputs, *overrides))


def children(outputs: Path) -> list[Any]:
    return [run for run in runs(outputs) if "mlflow.parentRunId" in run.data.tags]


def parents(outputs: Path) -> list[Any]:
    return [run for run in runs(outputs) if "mlflow.parentRunId" not in run.data.tags]


def tensors(outputs: Path) -> dict[str, str]:
    """Every model and checkpoint of the store by its hash."""
    files = sorted((outputs / "artifacts").glob("*/*.pt"))
    return {str(path.relative_to(outputs)): sha256(path) for path in files}


def finished(outputs: Path) -> dict[str, tuple[dict[str, str], dict[str, float]]]:
    """The finished jobs by name: parameters and metrics, without what differs by folder or clock."""
    return {
        run.info.run_name: (
            {key: value for key, value in run.data.params.items() if key != "outputs"},
            {key: value for key, value in run.data.metrics.items() if not any(word in key for word in TIMED)},
        )
        for run in children(outputs)
        if run.info.status == "FINISHED"
    }


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    outputs = tmp_path_factory.mktemp("undisturbed") / "outputs"
    done = sweep(outputs, *TWO_JOBS)
    assert done.returncode == 0, done.stderr
    return outputs


def test_longer_training_goes_on_from_the_shorter_when_the_schedule_is_open_ended(undisturbed: Path) -> None:
    epochs = [
        len([1 for name, _, _ in json.loads(path.read_text())["metrics"] if name == "qat/loss"])
        for path in (undisturbed / "artifacts").glob("qat-*/manifest.json")
    ]
    assert sorted(epochs) == [1, 2]
    alone = undisturbed.parent / "alone"
    done = forked.run(
        [sys.executable, "-m", "pipeline", *SMALL, "qat.schedule=constant", "qat.epochs=2", f"outputs={alone}"]
    )
    assert "goes on from" not in done.stdout
    assert tensors(alone).items() <= tensors(undisturbed).items()


def test_children_are_named_by_what_differs_under_one_parent_when_swept(undisturbed: Path) -> None:
    (parent,) = parents(undisturbed)
    assert parent.info.status == "FINISHED"
    assert {run.info.run_name for run in children(undisturbed)} == {"qat.epochs=1", "qat.epochs=2"}
    assert {run.data.tags["mlflow.parentRunId"] for run in children(undisturbed)} == {parent.info.run_id}


def test_finished_jobs_are_recognised_when_the_same_sweep_is_asked_for_again(undisturbed: Path) -> None:
    before = len(runs(undisturbed))
    again = sweep(undisturbed, *TWO_JOBS)
    assert again.returncode == 0
    assert again.stdout.count("finished already") == 2
    assert len(runs(undisturbed)) == before


def test_comparison_is_in_the_sweeps_folder_and_its_parent_when_it_ends(undisturbed: Path) -> None:
    (folder,) = (undisturbed / "sweeps").glob("[0-9a-f]*")
    (parent,) = parents(undisturbed)
    files = {"comparison.html", "comparison.csv", "accuracy_latency.png", "accuracy_epochs.png"}
    assert files <= {path.name for path in folder.iterdir()}
    logged = Path(parent.info.artifact_uri.removeprefix("file://"))
    assert {path.name for path in logged.iterdir()} == files
    with (folder / "comparison.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    assert {row["qat.epochs"] for row in rows} == {"1", "2"}
    assert parent.data.tags["sweep.best"] == rows[0]["run"]
    assert parent.data.tags["sweep.best_run_id"] == rows[0]["run_id"]
    description = parent.data.tags["mlflow.note.content"]
    assert description.startswith(f"First by the rule: **{rows[0]['run']}**")
    assert description.count("\n| ") == 3  # headings and two jobs


def test_jobs_alone_are_compared_when_the_command_is_given_the_sweeps_id(undisturbed: Path) -> None:
    (folder,) = (undisturbed / "sweeps").glob("[0-9a-f]*")
    done = forked.run([sys.executable, "-m", "pipeline.compare", folder.name, "--outputs", str(undisturbed)])
    assert done.returncode == 0, done.stderr
    assert "2 runs compared" in done.stdout
    assert (undisturbed / "comparison" / "comparison.csv").read_text() == (folder / "comparison.csv").read_text()


def truncate_model(outputs: Path) -> None:
    (folder,) = (outputs / "artifacts").glob("fuse-*")
    (folder / "model.pt").write_bytes((folder / "model.pt").read_bytes()[:1000])


def change_manifest(outputs: Path) -> None:
    (folder,) = (outputs / "artifacts").glob("train-*")
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["files"]["model.pt"] = "0" * 64
    (folder / "manifest.json").write_text(json.dumps(manifest))


def remove_artifact(outputs: Path) -> None:
    shutil.rmtree(next((outputs / "artifacts").glob("fuse-*")))


def delete_database(outputs: Path) -> None:
    (outputs / "mlflow.db").unlink()


FLOAT_ALONE = [*SMALL, "train.epochs=1", "stages=[train,fuse]"]


@pytest.fixture(scope="module")
def swept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    outputs = tmp_path_factory.mktemp("damaged") / "outputs"
    done = sweep(outputs, *FLOAT_ALONE)
    assert done.returncode == 0, done.stderr
    return outputs


@pytest.mark.operations
@pytest.mark.parametrize(
    ("damage", "line"),
    [
        (truncate_model, "model.pt does not match its manifest"),
        (change_manifest, "model.pt does not match its manifest"),
        (remove_artifact, "is not there any more, and will be made again"),
        (delete_database, "its run is not in MLflow any more, and will be logged again"),
    ],
)
def test_damage_is_told_and_made_good_when_the_sweep_is_asked_for_again(
    damage: Callable[[Path], None], line: str, swept: Path
) -> None:
    models, logged = tensors(swept), finished(swept)
    damage(swept)
    again = sweep(swept, *FLOAT_ALONE)
    assert again.returncode == 0, again.stderr
    assert len([said for said in again.stderr.splitlines() if line in said]) == 1
    assert "Traceback" not in again.stderr
    assert tensors(swept) == models
    assert finished(swept) == logged


@pytest.mark.operations
def test_finished_jobs_are_compared_when_nothing_is_tracked(tmp_path: Path) -> None:
    outputs = tmp_path / "outputs"
    done = sweep(outputs, *SMALL, "tracking=off", "backend=fbgemm,qnnpack")
    assert done.returncode == 0, done.stderr
    assert "2 runs compared" in done.stdout
    assert len(list((outputs / "sweeps").glob("*/comparison.html"))) == 1


@pytest.mark.operations
def test_sweep_equals_an_undisturbed_one_when_killed_at_random_moments(undisturbed: Path, tmp_path: Path) -> None:
    moments = random.Random(2026)
    kills, rounds = 0, 0
    while kills < KILLS:
        outputs = tmp_path / f"round-{rounds}" / "outputs"
        rounds += 1
        while kills < KILLS:
            process = subprocess.Popen(
                command(outputs, *TWO_JOBS), cwd=PROJECT_ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
            )
            try:
                # Start-up takes some seconds; each moment falls into the work after it, or near it.
                process.wait(moments.uniform(3, 11))
                break  # this sweep came to its end before the signal: another one, from nothing
            except subprocess.TimeoutExpired:
                process.send_signal(signal.SIGKILL)
                process.wait()
                kills += 1
        done = sweep(outputs, *TWO_JOBS)
        assert done.returncode == 0, done.stderr
        assert tensors(outputs) == tensors(undisturbed)
        assert finished(outputs) == finished(undisturbed)
        assert {run.info.status for run in runs(outputs)} <= {"FINISHED", "KILLED"}
        assert len(parents(outputs)) == 1
        assert list((outputs / "artifacts").glob("*.partial")) == []


@pytest.mark.operations
def test_failed_job_is_told_with_its_reason_and_the_others_go_on_when_one_fails(tmp_path: Path) -> None:
    outputs = tmp_path / "outputs"
    # Nine images cannot hold ten classes: it shows only when the job reads its data.
    done = sweep(outputs, *FLOAT_ALONE, "dataset.max_train_samples=9,200", "tracking.run_name='a & (b)'")
    assert done.returncode == 1
    assert "Error executing job" not in done.stderr
    assert "1 of 2 jobs failed" in done.stderr
    assert "dataset.max_train_samples=9: dataset.max_train_samples=9: too few" in done.stderr
    (retry,) = (line.split("retry: ")[1] for line in done.stderr.splitlines() if "retry: " in line)
    assert {"dataset.max_train_samples=9", "tracking.run_name='a & (b)'"} <= set(shlex.split(retry))
    assert "Traceback" not in done.stderr
    assert sorted(run.info.status for run in children(outputs)) == ["FAILED", "FINISHED"]
    (failed,) = (run for run in children(outputs) if run.info.status == "FAILED")
    assert "too few for a stratified choice of 10 classes" in failed.data.tags["error"]
    (parent,) = parents(outputs)
    assert parent.info.status == "FAILED"


def test_link_at_the_end_of_a_sweep_opens_a_view_of_its_jobs(
    small_request: Callable[..., Request], outputs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    typed, jobs = (
        ["backend=fbgemm,qnnpack", "+qat.epochs=1,2", "seed=3"],
        [["backend=fbgemm", "+qat.epochs=1", "seed=3"]],
    )
    with sweep_session(typed, jobs, small_request().config) as sweep:
        (parent,) = parents(outputs)
    assert f"/#/experiments/{parent.info.experiment_id}/runs?" in capsys.readouterr().out.splitlines()[-1]
    tags = client(outputs).get_experiment(parent.info.experiment_id).tags
    view = View(sweep.id, tags[f"mlflow.sharedViewState.{sweep.id}"])
    assert json.loads(view.value)["name"] == sweep.name
    shown = unpacked(view)
    assert parent.info.run_id in shown["searchFilter"]
    assert shown["compareRunCharts"][-1]["selectedParams"] == ["backend.name", "qat.epochs"]


def test_parent_is_failed_and_the_error_not_hidden_when_no_job_began(
    tmp_path: Path,
) -> None:
    outputs = tmp_path / "outputs"
    config = compose_request([*SMALL, f"outputs={outputs}"]).config
    with (
        pytest.raises(ZeroDivisionError),
        sweep_session(["seed=0,1"], [["seed=0"], ["seed=1"]], config),
    ):
        raise ZeroDivisionError
    assert [run.info.status for run in parents(outputs)] == ["FAILED"]


@pytest.mark.operations
def test_every_job_is_logged_when_processes_meet_a_fresh_store(tmp_path: Path) -> None:
    outputs = tmp_path / "outputs"
    tiny = ["train.epochs=1", "stages=[train]", "dataset.max_train_samples=100"]
    parallel = ["hydra/launcher=joblib", f"hydra.launcher.n_jobs={PROCESSES}"]
    done = sweep(outputs, *tiny, *parallel, f"seed=range(0,{PROCESSES})")
    assert done.returncode == 0, done.stderr
    assert [run.info.status for run in children(outputs)] == ["FINISHED"] * PROCESSES
    assert {run.data.params["seed"] for run in children(outputs)} == {str(seed) for seed in range(PROCESSES)}


def test_status_prints_every_job_with_its_state(undisturbed: Path) -> None:
    done = forked.run([sys.executable, "-m", "pipeline.sweep", "status", "--outputs", str(undisturbed)], check=True)
    assert done.stdout.count("finished") == 2
    assert "qat.epochs=2" in done.stdout


def test_other_sweeps_are_shown_when_the_file_of_one_is_damaged(tmp_path: Path) -> None:
    for name, damage in (("whole", None), ("damaged", "{")):
        one = Sweep(tmp_path / "sweeps" / name, ["seed=1,2"], [["seed=1"], ["seed=2"]])
        one.save()
        if damage:
            (one.folder / "sweep.json").write_text(damage)
    done = forked.run([sys.executable, "-m", "pipeline.sweep", "status", "--outputs", str(tmp_path)])
    assert done.returncode == 0
    assert "sweep whole: python -m pipeline -m seed=1,2" in done.stdout
    assert done.stderr == (
        f"warning: {tmp_path}/sweeps/damaged/sweep.json: cannot be read (JSONDecodeError); the sweep's command, typed "
        "again, writes it anew\n"
    )


def test_job_is_killed_in_its_record_when_its_process_is_gone(tmp_path: Path) -> None:
    one = Sweep(tmp_path / "sweep", ["seed=1,2"], [["seed=1"], ["seed=2"]])
    one.save()
    job = one.job(["seed=1"])
    with job.lock:
        job.write(JobRecord("seed=1", ["seed=1"], RUNNING))
        assert [record.state for record in Sweep.load(one.folder).records()] == ["running", "waiting"]
    assert [record.state for record in Sweep.load(one.folder).records()] == ["killed", "waiting"]


def test_sweep_id_is_the_same_when_only_the_launcher_or_force_differs() -> None:
    asked = ["backend=fbgemm,qnnpack", "qat.epochs=1,2"]
    assert sweep_id(asked) == sweep_id([*reversed(asked), "hydra/launcher=joblib", "force=true"])
    assert sweep_id(asked) != sweep_id(["backend=fbgemm,qnnpack", "qat.epochs=1,3"])
