"""What MLflow shows of a run: a real SQLite store, read back through MLflow's own client."""

from __future__ import annotations

import dataclasses
import re
import shutil
import signal
import subprocess
import sys
import urllib.parse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlflow
import pytest
import yaml

from pipeline import card
from pipeline.host.files import PROJECT_ROOT
from pipeline.run.request import Request
from pipeline.run.runner import Outcome, run
from pipeline.settings.config import TrackingConfig
from pipeline.tracking import RunRecord, open_run
from pipeline.tracking.views import results
from tests import forked
from tests.conftest import SMALL

RECORD = RunRecord("a run", {}, {}, "seed: 0\n", ("digits", "0123", "nowhere"))
NINE = {
    *(f"{form}/{what}" for form in ("fp32", "int8") for what in ("accuracy_pct", "latency_ms", "size_mb")),
    "speedup",
    "compression",
    "accuracy_drop_pct",
}


def client(outputs: Path) -> mlflow.MlflowClient:
    return mlflow.MlflowClient(f"sqlite:///{outputs / 'mlflow.db'}")


def runs(outputs: Path) -> list[Any]:
    store = client(outputs)
    return list(store.search_runs([experiment.experiment_id for experiment in store.search_experiments()]))


@pytest.fixture
def finished_run(finished_outputs: Path) -> Any:
    (found,) = runs(finished_outputs)
    return found


@pytest.fixture
def once(
    capsys: pytest.CaptureFixture[str], finished_outputs: Path, small_request: Callable[..., Request], outputs: Path
) -> Outcome:
    """The one run of a store, with all of its artifacts; what it says is still to be read."""
    shutil.copytree(finished_outputs / "artifacts", outputs / "artifacts")
    return run(small_request())


def test_run_has_the_nine_metrics_when_finished(finished_run: Any) -> None:
    assert finished_run.info.status == "FINISHED"
    assert finished_run.data.metrics.keys() >= NINE


def test_run_has_curves_with_the_epoch_as_step_when_finished(finished_run: Any, finished_outputs: Path) -> None:
    for name in ("train/loss", "train/val_accuracy_pct", "qat/loss", "qat/val_accuracy_pct"):
        history = client(finished_outputs).get_metric_history(finished_run.info.run_id, name)
        assert [point.step for point in history] == [0]


def test_run_has_the_flattened_configuration_as_parameters(finished_run: Any) -> None:
    parameters = finished_run.data.params
    assert parameters["qat.epochs"] == "1"
    assert parameters["model.target"] == "tests.tiny:Tiny"
    assert parameters["backend.engine"] == "fbgemm"
    assert parameters["dataset.max_train_samples"] == "200"
    assert parameters["seed"] == "0"


def test_run_has_tags_that_say_where_it_was_made_and_with_which_qconfig(finished_run: Any) -> None:
    tags = finished_run.data.tags
    expected = {"git_commit", "torch_version", "cpu", "threads", "backend", "qconfig.activation", "qconfig.weight"}
    assert tags.keys() >= expected
    assert tags["qconfig.activation"].startswith("quint8 [0, 127]")
    assert tags["artifact.train"].startswith("train-")


def test_run_has_the_data_set_as_input(finished_run: Any) -> None:
    (dataset,) = finished_run.inputs.dataset_inputs
    assert dataset.dataset.name == "digits"
    assert "sklearn" in dataset.dataset.source


def test_run_has_yaml_table_and_confusion_matrix_as_artifacts(finished_run: Any, finished_outputs: Path) -> None:
    folder = Path(finished_run.info.artifact_uri.removeprefix("file://"))
    assert folder.is_relative_to(finished_outputs / "mlartifacts")
    composed = yaml.safe_load((folder / "config.yaml").read_text())
    assert composed["qat"]["epochs"] == 1
    table = (folder / "results.md").read_text()
    assert table == finished_run.data.tags["mlflow.note.content"]
    assert f"{finished_run.data.metrics['int8/accuracy_pct']:.2f}" in table
    assert (folder / "confusion_matrix_int8.png").read_bytes().startswith(b"\x89PNG")


def test_card_of_a_run_is_one_page_that_fetches_nothing(
    finished_run: Any, finished_outputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = ["card", finished_run.info.run_id, "--outputs", str(finished_outputs), "--output", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", given)
    card.main()
    page = (tmp_path / f"{finished_run.info.run_id}.html").read_text()
    assert "Content-Security-Policy" in page
    assert "https://" not in page
    assert "qat.epochs=1" in (tmp_path / f"{finished_run.info.run_id}.md").read_text()


@pytest.mark.parametrize(
    ("run", "said"),
    [
        ("models:/digits", "RUN models:/digits: allowed: models:/NAME@ALIAS or models:/NAME/VERSION"),
        ("nobody", "RUN nobody: no run has this id or name"),
    ],
)
def test_card_is_refused_in_one_line_when_there_is_no_such_run(
    finished_outputs: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], run: str, said: str
) -> None:
    monkeypatch.setattr(sys, "argv", ["card", run, "--outputs", str(finished_outputs)])
    with pytest.raises(SystemExit) as end:
        card.main()
    assert end.value.code == 2
    assert said in capsys.readouterr().err


def test_replayed_run_logs_what_the_first_one_did_when_everything_is_cached(
    finished_outputs: Path, finished_run: Any, small_request: Callable[..., Request], outputs: Path
) -> None:
    shutil.copytree(finished_outputs / "artifacts", outputs / "artifacts")
    run(small_request())
    (replayed,) = runs(outputs)
    assert replayed.data.metrics == finished_run.data.metrics
    assert replayed.data.tags["mlflow.note.content"] == finished_run.data.tags["mlflow.note.content"]


def test_printed_link_opens_the_view_that_the_experiment_keeps(
    once: Outcome, outputs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = re.search(r"/#/experiments/(\w+)/runs\?(\S+)$", capsys.readouterr().out, re.MULTILINE)
    assert found is not None
    asked = urllib.parse.parse_qs(found[2])
    assert asked.pop("workflowType") == ["machine_learning"]
    (key,) = asked.pop("viewStateShareKey")
    assert not asked
    assert results().value == client(outputs).get_experiment(found[1]).tags[f"mlflow.sharedViewState.{key}"]


def test_experiment_gets_the_view_of_today_when_it_has_none_or_another_and_is_left_alone_when_it_has_it(
    outputs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with open_run(TrackingConfig(), outputs, RECORD):
        pass
    experiment = runs(outputs)[0].info.experiment_id
    client(outputs).set_experiment_tag(experiment, results().tag, "drawn up yesterday")
    with open_run(TrackingConfig(), outputs, RECORD):
        pass
    assert client(outputs).get_experiment(experiment).tags[results().tag] == results().value
    monkeypatch.setattr(mlflow.MlflowClient, "set_experiment_tag", lambda *_: pytest.fail("it is written again"))
    with open_run(TrackingConfig(), outputs, RECORD):
        pass


def test_cached_repeat_adds_no_run_and_names_the_one_that_is_there(
    once: Outcome, small_request: Callable[..., Request], outputs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    said = capsys.readouterr().out.partition("next:")[0]
    again = run(small_request("tracking.patience_s=1"))
    assert (again.run_id, again.metrics) == (once.run_id, once.metrics)
    assert len(runs(outputs)) == 1
    said_again = capsys.readouterr().out
    assert f"runs/{once.run_id}?workflowType=machine_learning" in said_again
    assert "tracking.run_name=" in said_again
    assert "force=true" in said_again
    assert said_again.startswith(said)  # the table is shown as ever


def test_run_is_added_when_another_name_other_stages_or_settings_or_new_work_are_asked_for(
    once: Outcome, small_request: Callable[..., Request], outputs: Path
) -> None:
    named = run(small_request("tracking.run_name=mine"))
    assert run(small_request("tracking.run_name=mine")).run_id == named.run_id
    assert len(runs(outputs)) == 2
    asked = ("stages=[convert,evaluate]", "dataset.workers=1", "force=evaluate", "evaluate.repeats=2")
    for count, override in enumerate(asked, start=3):
        run(small_request(override))
        assert len(runs(outputs)) == count


def test_run_is_added_when_the_one_that_is_there_did_not_finish(
    once: Outcome, small_request: Callable[..., Request], outputs: Path
) -> None:
    client(outputs).update_run(str(once.run_id), status="FAILED")
    assert run(small_request()).run_id != once.run_id


def test_cached_job_gets_a_child_of_its_own_sweep_once(
    once: Outcome, small_request: Callable[..., Request], outputs: Path
) -> None:
    parent = client(outputs).create_run(runs(outputs)[0].info.experiment_id).info.run_id
    job = dataclasses.replace(small_request(), name="seed=0", parent_run_id=parent, job="0123")
    child = run(job)
    assert client(outputs).get_run(str(child.run_id)).data.tags["mlflow.parentRunId"] == parent
    assert run(job).run_id == child.run_id
    assert run(dataclasses.replace(job, job="4567")).run_id != child.run_id


def test_run_is_failed_with_the_error_as_tag_when_a_stage_raises(
    small_request: Callable[..., Request], outputs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pipeline.training import loop as training

    def burst(*args: object, **settings: object) -> None:
        raise RuntimeError("the disk is full")

    monkeypatch.setattr(training, "fit", burst)
    with pytest.raises(RuntimeError, match="the disk is full"):
        run(small_request())
    (failed,) = runs(outputs)
    assert failed.info.status == "FAILED"
    assert failed.data.tags["error"] == "RuntimeError: the disk is full"
    assert mlflow.active_run() is None


@pytest.mark.operations
@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM])
def test_run_is_killed_when_interrupted(outputs: Path, sent: signal.Signals) -> None:
    command = [sys.executable, "-m", "pipeline", *SMALL, "train.epochs=50", f"outputs={outputs}"]
    process = subprocess.Popen(
        command,
        cwd=PROJECT_ROOT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        # A shell lets what it starts in the background ignore SIGINT, and so would the tests and their children.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    assert process.stderr is not None
    for line in process.stderr:
        if "epoch 1/50" in line:
            break
    process.send_signal(sent)
    rest = process.stderr.read()
    assert process.wait(60) == 130
    assert "Traceback" not in rest
    assert rest.splitlines()[-1].startswith("error: interrupted")
    (killed,) = runs(outputs)
    assert killed.info.status == "KILLED"


def test_nothing_is_tracked_when_tracking_is_off(
    finished_outputs: Path, small_request: Callable[..., Request], outputs: Path
) -> None:
    shutil.copytree(finished_outputs / "artifacts", outputs / "artifacts")
    run(small_request("tracking=off"))
    assert sorted(path.name for path in outputs.iterdir()) == ["artifacts"]


def test_outputs_lie_in_the_working_directory_when_their_path_is_relative(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "pipeline", *SMALL, "stages=[train]"]
    environment = {
        "PYTHONPATH": str(PROJECT_ROOT),
        "PATH": "/usr/bin:/bin",
        "HOME": str(tmp_path / "home"),
        "OMP_NUM_THREADS": "1",
    }
    (tmp_path / "here").mkdir()
    forked.run(command, cwd=tmp_path / "here", check=True, env=environment)
    (found,) = runs(tmp_path / "here" / "outputs")
    assert found.info.artifact_uri.startswith((tmp_path / "here" / "outputs" / "mlartifacts").as_uri())


@pytest.mark.operations
def test_run_is_marked_killed_by_the_next_one_when_its_process_is_gone_and_only_then(
    outputs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    dies = "with open_run(TrackingConfig(), Path(sys.argv[1]), record): os._exit(9)"
    program = (
        "import os, sys\nfrom pathlib import Path\nfrom pipeline.settings.config import TrackingConfig\n"
        f"from pipeline.tracking import RunRecord, open_run\nrecord = {RECORD!r}\n{dies}"
    )
    assert subprocess.run([sys.executable, "-c", program, outputs], cwd=PROJECT_ROOT).returncode == 9
    (killed,) = runs(outputs)
    assert killed.info.status == "RUNNING"
    with open_run(TrackingConfig(), outputs, RECORD) as lives:
        assert "1 run of a killed process marked KILLED" in capsys.readouterr().out
        client(outputs).update_run(lives.run_id, status="RUNNING")
        with open_run(TrackingConfig(), outputs, RECORD):
            states = {run.info.run_id: run.info.status for run in runs(outputs)}
    assert states.pop(killed.info.run_id) == "KILLED"
    assert list(states.values()) == ["RUNNING", "RUNNING"]
    assert capsys.readouterr().out == ""
    assert sorted(run.info.status for run in runs(outputs)) == ["FINISHED", "FINISHED", "KILLED"]
    assert [path.name for path in outputs.glob(".living/*/*")] == [".door"]


def dead_run(outputs: Path) -> str:
    """A run whose process is gone."""
    with open_run(TrackingConfig(), outputs, RECORD) as tracker:
        pass
    assert tracker.run_id is not None
    (door,) = outputs.glob(".living/*/.door")
    door.with_name(tracker.run_id).touch()
    client(outputs).update_run(tracker.run_id, status="RUNNING")
    return tracker.run_id


def test_next_run_begins_when_a_dead_one_was_deleted_or_strange_files_lie_among_the_locks(outputs: Path) -> None:
    deleted = dead_run(outputs)
    client(outputs).delete_run(deleted)
    (door,) = outputs.glob(".living/*/.door")
    for name in (".nfs000000000123", "x.tmp", "a" * 32):
        door.with_name(name).touch()
    with open_run(TrackingConfig(), outputs, RECORD) as tracker:
        pass
    assert [run.info.run_id for run in runs(outputs)] == [tracker.run_id]
    assert sorted(path.name for path in door.parent.iterdir()) == [".door", ".nfs000000000123", "x.tmp"]


def test_dead_run_is_left_to_its_own_store_when_the_next_one_goes_to_another(outputs: Path, tmp_path: Path) -> None:
    dead = dead_run(outputs)
    with open_run(TrackingConfig(uri=f"sqlite:///{tmp_path / 'other.db'}"), outputs, RECORD):
        pass
    assert client(outputs).get_run(dead).info.status == "RUNNING"
    with open_run(TrackingConfig(), outputs, RECORD):
        pass
    assert client(outputs).get_run(dead).info.status == "KILLED"


def test_run_is_killed_when_it_is_interrupted_as_it_begins(outputs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    begin = mlflow.MlflowClient.create_run

    def interrupted(*given: Any, **named: Any) -> Any:
        signal.raise_signal(signal.SIGINT)
        return begin(*given, **named)

    monkeypatch.setattr(mlflow.MlflowClient, "create_run", interrupted)
    with pytest.raises(KeyboardInterrupt), open_run(TrackingConfig(), outputs, RECORD):
        raise AssertionError("it goes on")
    (run,) = runs(outputs)
    assert run.info.status == "KILLED"
    assert mlflow.active_run() is None
