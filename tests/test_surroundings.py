"""What a command finds around it: MLflow's variables, and a store that is damaged, deleted, locked or none at all."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlflow
import pytest

from pipeline.host import terminal
from pipeline.host.errors import UserError
from pipeline.host.files import PROJECT_ROOT
from pipeline.settings.config import TrackingConfig
from pipeline.tracking import RunRecord, open_run
from pipeline.tracking.parents import open_parent
from pipeline.tracking.reading import read_runs
from tests import forked

pytestmark = pytest.mark.operations

RECORD = RunRecord("a run", {}, {}, "seed: 0\n", ("digits", "0123", "nowhere"))


def client(outputs: Path) -> mlflow.MlflowClient:
    return mlflow.MlflowClient(f"sqlite:///{outputs / 'mlflow.db'}")


def track(config: TrackingConfig, outputs: Path) -> str:
    with open_run(config, outputs, RECORD) as tracker:
        tracker.metric("int8/accuracy_pct", 90.0)
    assert tracker.run_id is not None
    return tracker.run_id


def sweep(config: TrackingConfig, outputs: Path) -> str:
    return open_parent(config, outputs, "0123abcd", "seed=0,1", ["seed"]).run_id


def read(config: TrackingConfig, outputs: Path) -> Any:
    return read_runs(config, outputs, experiment="pipeline")


def command(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    words = [sys.executable, *arguments]
    return subprocess.run(
        words, cwd=PROJECT_ROOT, env={**os.environ, **environment}, capture_output=True, text=True, timeout=300
    )


@pytest.mark.parametrize("begin", [track, sweep])
def test_run_that_is_there_stays_as_it_is_when_the_environment_names_it(
    begin: Callable[[TrackingConfig, Path], str],
    outputs: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    first = track(TrackingConfig(), outputs)
    before = client(outputs).get_run(first).to_dictionary()
    other = client(outputs).create_experiment("another")
    named = {
        "MLFLOW_RUN_ID": first,
        "MLFLOW_EXPERIMENT_ID": other,
        "MLFLOW_EXPERIMENT_NAME": "another",
        "MLFLOW_PARENT_RUN_ID": first,
        "MLFLOW_RUN_CONTEXT": f'{{"mlflow.parentRunId": "{first}"}}',
        "MLFLOW_ACTIVE_MODEL_ID": "m-0123",
        "MLFLOW_REGISTRY_URI": f"sqlite:///{outputs / 'registry.db'}",
        "MLFLOW_ENABLE_ASYNC_LOGGING": "true",
        "MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING": "true",
        "MLFLOW_ENABLE_WORKSPACES": "true",
        "MLFLOW_WORKSPACE": "another",
    }
    for variable, value in named.items():
        monkeypatch.setenv(variable, value)
    second = begin(TrackingConfig(), outputs)
    said = capsys.readouterr().err
    assert [variable for variable in named if f"warning: {variable} in the environment is not used: " not in said] == []
    assert client(outputs).get_run(first).to_dictionary() == before
    run = client(outputs).get_run(second)
    assert run.info.experiment_id == before["info"]["experiment_id"]
    assert "mlflow.parentRunId" not in run.data.tags
    assert client(outputs).search_runs([other]) == []
    assert mlflow.get_registry_uri() == f"sqlite:///{outputs / 'mlflow.db'}"


@pytest.mark.parametrize("begin", [track, sweep])
def test_store_that_the_environment_names_is_told_once_when_it_is_another_than_is_used(
    begin: Callable[[TrackingConfig, Path], str],
    outputs: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://me:hunter2@127.0.0.1:9")
    begin(TrackingConfig(), outputs)
    assert capsys.readouterr().err == (
        f"warning: MLFLOW_TRACKING_URI=http://***@127.0.0.1:9 is not used, but sqlite:///{outputs / 'mlflow.db'}; "
        "tracking=server takes it\n"
    )
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{outputs / 'mlflow.db'}")
    begin(TrackingConfig(), outputs)
    assert capsys.readouterr().err == ""


def _text(path: Path) -> None:
    path.write_text("the notes of the day, and nothing else\n" * 20)


def _other_program(path: Path) -> None:
    with sqlite3.connect(path) as store:
        store.execute("create table notes (day text)")


def _cut_off(path: Path) -> None:
    track(TrackingConfig(), path.parent)
    os.truncate(path, 100_000)


STRANGE: dict[str, tuple[Callable[[Path], Any], str]] = {
    "text": (_text, "file is not a database"),
    "bytes": (lambda path: path.write_bytes(bytes(range(1, 256)) * 40), "file is not a database"),
    "empty": (Path.touch, "it is empty"),
    "folder": (Path.mkdir, "it is a folder"),
    "another program's": (_other_program, "it has no table 'alembic_version'"),
    "cut off": (_cut_off, "database disk image is malformed"),
}


@pytest.mark.parametrize("kind", STRANGE)
def test_store_is_refused_in_one_line_and_left_alone_when_it_is_no_database_of_mlflow(kind: str, outputs: Path) -> None:
    make, why = STRANGE[kind]
    outputs.mkdir()
    database = outputs / "mlflow.db"
    make(database)
    before = database.read_bytes() if database.is_file() else b""
    for ask in (track, sweep, read):
        with pytest.raises(UserError) as refused:
            ask(TrackingConfig(), outputs)
        assert str(refused.value) == (
            f"tracking.uri=sqlite:///{database}: no database of MLflow's, or a damaged one: {why}; allowed: one that "
            "MLflow made, or none, which the next run makes"
        )
    assert (database.read_bytes() if database.is_file() else b"") == before


def test_deleted_experiment_is_named_with_the_command_that_restores_it(outputs: Path) -> None:
    track(TrackingConfig(), outputs)
    found = client(outputs).get_experiment_by_name("pipeline")
    client(outputs).delete_experiment(found.experiment_id)
    lines = []
    for ask in (track, sweep, read):
        with pytest.raises(UserError, match=r"=pipeline: this experiment was deleted in MLflow; ") as refused:
            ask(TrackingConfig(), outputs)
        lines.append(str(refused.value))
    (restore,) = {line.split("; ")[1].removesuffix(" restores it") for line in lines}
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    subprocess.run(restore, shell=True, check=True, capture_output=True, env={**os.environ, "PATH": path})
    track(TrackingConfig(), outputs)
    assert len(read(TrackingConfig(), outputs)) == 2


@pytest.mark.parametrize("ask", [track, sweep, read])
def test_locked_store_is_named_and_waited_for(
    ask: Callable[[TrackingConfig, Path], Any], outputs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    track(TrackingConfig(), outputs)
    other = sqlite3.connect(outputs / "mlflow.db", isolation_level=None)
    other.execute("begin exclusive")
    with pytest.raises(UserError, match=rf"tracking\.uri=.*{outputs}/mlflow\.db: another process has it locked"):
        ask(TrackingConfig(patience_s=0), outputs)
    said: list[str] = []

    def warned(text: str) -> None:
        said.append(text)
        other.close()

    monkeypatch.setattr(terminal, "warn", warned)
    assert ask(TrackingConfig(), outputs)
    (line,) = said
    assert line.startswith(f"{outputs}/mlflow.db: another process has it locked: waits for it, up to ")


def test_run_goes_on_when_its_store_is_locked_in_its_middle(outputs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []

    def busy(*_: Any, **__: Any) -> None:
        calls.append("locked")
        monkeypatch.undo()
        raise mlflow.exceptions.MlflowException("(sqlite3.OperationalError) database is locked")  # after 20 seconds

    with open_run(TrackingConfig(), outputs, RECORD) as tracker:
        monkeypatch.setattr(mlflow.MlflowClient, "log_batch", busy)
        tracker.metric("int8/accuracy_pct", 90.0)
        monkeypatch.setattr(mlflow.MlflowClient, "set_terminated", busy)
    assert calls == ["locked", "locked"]
    run = client(outputs).get_run(tracker.run_id or "")
    assert (run.info.status, run.data.metrics) == ("FINISHED", {"int8/accuracy_pct": 90.0})


def test_sweep_ends_with_status_2_and_one_line_when_its_store_is_text(outputs: Path) -> None:
    outputs.mkdir()
    _text(outputs / "mlflow.db")
    ended = forked.run([sys.executable, "-m", "pipeline", "seed=0,1", f"outputs={outputs}", "stages=[train]", "-m"])
    assert (ended.returncode, ended.stdout) == (2, "")
    assert ended.stderr.startswith(f"error: tracking.uri=sqlite:///{outputs / 'mlflow.db'}: no database of MLflow's")
    assert ended.stderr.count("\n") == 1


@pytest.mark.parametrize(("flag", "place"), [("-m", 99), ("--multirun", 2)])
def test_sweep_runs_its_jobs_when_the_flag_stands_behind_settings(flag: str, place: int, outputs: Path) -> None:
    words = ["seed=0,1", "stages=[train]", "tracking=off", "dataset.max_train_samples=60", f"outputs={outputs}"]
    words.insert(place, flag)
    ended = forked.run([sys.executable, "-m", "pipeline", *words])
    assert ended.returncode == 1, ended.stderr
    assert "error: 2 of 2 jobs failed:" in ended.stderr  # begun, and refused for their 60 images
    assert "usage:" not in ended.stderr


def test_configuration_is_shown_when_the_flag_stands_among_settings() -> None:
    ended = forked.run([sys.executable, "-m", "pipeline", "seed=7", "--cfg", "job", "train.epochs=3", "--resolve"])
    assert (ended.returncode, ended.stderr) == (0, "")
    assert "seed: 7\n" in ended.stdout


def test_what_a_terminal_cannot_show_is_escaped(tmp_path: Path) -> None:
    ascii_only = {"PYTHONIOENCODING": "ascii:strict"}
    ended = command("-m", "pipeline.predict", f"{tmp_path}/Ü.png", "--outputs", "größe", **ascii_only)
    assert ended.returncode == 2
    assert ended.stderr.startswith("error: no exported int8 model in ")
    assert "gr\\xf6\\xdfe" in ended.stderr
    shown = command("-m", "pipeline", "tracking.experiment='Größe'", "--cfg", "job", **ascii_only)
    assert (shown.returncode, shown.stderr) == (0, "")
    assert "experiment: Gr\\xf6\\xdfe\n" in shown.stdout


@pytest.mark.parametrize(
    "backend",
    [
        "module://matplotlib_inline.backend_inline",
        pytest.param("nonsense", marks=pytest.mark.operations),
        pytest.param("qtagg", marks=pytest.mark.operations),
    ],
)
def test_plots_are_drawn_when_the_environment_names_a_backend_that_there_is_not(backend: str, tmp_path: Path) -> None:
    # A command as all begin, and nothing but a plot: a whole run takes too long for this alone.
    script = (
        "from pathlib import Path; import sys, torch; from pipeline.commands.command_line import run_command\n"
        "from pipeline.tasks.confusion_matrix import draw\n"
        "labels = torch.tensor([0, 1])\n"
        "run_command(lambda: draw(labels, labels, ('a', 'b'), Path(sys.argv[1])))"
    )
    ended = command("-c", script, str(tmp_path / "plot.png"), MPLBACKEND=backend)
    assert ended.returncode == 0, ended.stderr
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")


CRASHING = """
import ctypes
from pipeline.commands.command_line import run_command
run_command(lambda: ctypes.string_at(0))
"""


def test_crash_says_where_it_was_when_a_library_ends_the_process() -> None:
    ended = subprocess.run([sys.executable, "-c", CRASHING], cwd=PROJECT_ROOT, capture_output=True, text=True)
    assert ended.returncode == -signal.SIGSEGV
    assert "Segmentation fault" in ended.stderr
    assert "in string_at" in ended.stderr
