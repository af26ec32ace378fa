"""The command `python -m pipeline.artifacts`: what it tells of the store, what it removes, and what it never does."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import mlflow
import pytest

from pipeline import artifacts
from pipeline.host.files import PROJECT_ROOT
from pipeline.run import sources
from pipeline.run.artifact_store import Store, note_tracking
from pipeline.sweeps.states import JobRecord, Sweep

Command = Callable[..., str]


@pytest.fixture
def outputs(finished_outputs: Path, tmp_path: Path) -> Path:
    """The outputs of a finished run, with a float model besides that nothing stands on."""
    outputs = tmp_path / "outputs"
    shutil.copytree(finished_outputs, outputs)
    (train,) = (outputs / "artifacts").glob("train-*")
    shutil.copytree(train, train.with_name("train-0000000000000000"))
    return outputs


@pytest.fixture
def command(outputs: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    """Runs the command on these outputs, and gives what it says."""

    def say(*arguments: str, status: int = 0) -> str:
        monkeypatch.setattr(sys, "argv", ["artifacts", *arguments, "--outputs", str(outputs)])
        capsys.readouterr()
        if status:
            with pytest.raises(SystemExit) as ended:
                artifacts.main()
            assert ended.value.code == status
        else:
            artifacts.main()
        captured = capsys.readouterr()
        return captured.err if status else captured.out

    return say


def line_of(text: str, stage: str) -> str:
    (line,) = (line for line in text.splitlines() if line.startswith(f"{stage}-") and "-0000" not in line)
    return line


def names(outputs: Path) -> set[str]:
    return {path.name for path in (outputs / "artifacts").glob("*-*") if path.is_dir()}


def test_list_tells_size_age_code_and_runs_when_a_run_stands_on_them(command: Command, outputs: Path) -> None:
    text = command()
    for stage in ("train", "fuse", "qat", "convert", "evaluate"):
        words = line_of(text, stage).split()
        assert words[2] in ("MB", "kB")
        assert "yes" in words
        assert " 1: " in line_of(text, stage)
    (line,) = (line for line in text.splitlines() if line.startswith("train-0000000000000000"))
    assert line.rstrip().endswith("none")
    assert "6 artifacts, " in text


def test_list_tells_what_todays_code_would_make_again_when_a_file_or_a_library_is_another(
    command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    digest = sources.digest_of
    changed = "pipeline/stages/convert.py"
    monkeypatch.setattr(
        "pipeline.run.inventory.digest_of", lambda file, memory: "0" if file == changed else digest(file, memory)
    )
    text = command()
    used = {stage: " yes " in line_of(text, stage) for stage in ("train", "fuse", "qat", "convert", "evaluate")}
    assert used == {"train": True, "fuse": True, "qat": True, "convert": False, "evaluate": False}
    monkeypatch.setattr("pipeline.run.inventory.version_of", lambda library: "9.9")
    assert " yes " not in command()


def test_prune_removes_what_no_run_stands_on_when_agreed(command: Command, outputs: Path) -> None:
    before = names(outputs)
    text = command("prune", "--yes")
    assert "1 artifact, " in text
    assert text.splitlines()[-1].startswith("removed 1 artifact, ")
    assert names(outputs) == before - {"train-0000000000000000"}
    assert command("prune", "--yes").startswith("nothing to remove: of 5 artifacts, ")
    client = mlflow.MlflowClient(f"sqlite:///{outputs}/mlflow.db")
    for experiment in client.search_experiments():
        for run in client.search_runs([experiment.experiment_id]):
            client.delete_run(run.info.run_id)
    command("prune", "--yes")
    assert names(outputs) == set()


def test_prune_takes_what_is_outdated_only_when_asked(
    command: Command, outputs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command("prune", "--yes")
    monkeypatch.setattr("pipeline.run.inventory.version_of", lambda library: "9.9")
    command("prune", "--yes")
    assert len(names(outputs)) == 5
    command("prune", "--yes", "--outdated")
    assert names(outputs) == set()


def test_prune_keeps_everything_when_nobody_agrees(
    command: Command, outputs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = names(outputs)
    assert "--yes removes them without asking" in command("prune", status=2)
    monkeypatch.setattr(artifacts, "_is_agreed", lambda: False)
    assert command("prune").splitlines()[-1] == "nothing is removed"
    assert names(outputs) == before


@pytest.fixture
def run_under_way(outputs: Path) -> Iterator[subprocess.Popen[str]]:
    """A process that holds the artifact that nothing else stands on."""
    program = (
        "import sys, time; from pathlib import Path; from pipeline.run.artifact_store import Store, note_tracking\n"
        f"with Store(Path({str(outputs / 'artifacts')!r})).holding(['train-0000000000000000']):\n"
        "    print('holds', flush=True); time.sleep(600)"
    )
    process = subprocess.Popen([sys.executable, "-c", program], cwd=PROJECT_ROOT, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "holds\n"
    yield process
    process.kill()
    process.wait()


def test_prune_keeps_what_a_run_under_way_holds_until_it_is_killed(
    command: Command, outputs: Path, run_under_way: subprocess.Popen[str]
) -> None:
    text = command("prune", "--yes")
    assert text.splitlines()[-1] == "removed 0 artifacts, 0 B; 1 are held by runs under way and stay"
    assert "train-0000000000000000" in names(outputs)
    os.kill(run_under_way.pid, signal.SIGKILL)
    run_under_way.wait()
    command("prune", "--yes")
    assert "train-0000000000000000" not in names(outputs)


def test_prune_keeps_what_an_untracked_job_stands_on(command: Command, outputs: Path) -> None:
    sweep = Sweep(outputs / "sweeps" / "01234567", ["seed=1,2"], [["seed=1"], ["seed=2"]])
    sweep.save()
    sweep.job(["seed=1"]).write(JobRecord("a job", ["seed=1"], "finished", artifacts=["train-0000000000000000"]))
    assert "1: a job" in command()
    assert "nothing to remove" in command("prune", "--yes")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--yes",), "--yes: allowed: with prune"),
        (("pruen",), "pruen: allowed: list, prune; did you mean 'prune'?"),
        (("prune", "--tracking-uri", "sqlite:////nowhere/mlflow.db"), "there is no such database"),
    ],
)
def test_command_is_refused_in_one_line_when_it_cannot_know(
    command: Command, outputs: Path, arguments: tuple[str, ...], said: str
) -> None:
    before = names(outputs)
    text = command(*arguments, status=2)
    assert said in text
    assert len(text.splitlines()) == 1
    assert names(outputs) == before


def test_prune_asks_every_store_in_which_runs_were_tracked(command: Command, outputs: Path, tmp_path: Path) -> None:
    command("prune", "--yes")
    (outputs / "mlflow.db").rename(tmp_path / "elsewhere.db")
    note_tracking(outputs, f"sqlite:///{tmp_path}/elsewhere.db")
    assert command("prune", "--yes").startswith("nothing to remove: of 5 artifacts, ")
    (tmp_path / "elsewhere.db").unlink()
    assert "there is no such database" in command("prune", "--yes", status=2)
    assert len(names(outputs)) == 5


def test_prune_leaves_folders_that_no_stage_made(command: Command, outputs: Path) -> None:
    (outputs / "artifacts" / "my-notes").mkdir()
    assert "my-notes" not in command()
    command("prune", "--yes")
    assert (outputs / "artifacts" / "my-notes").is_dir()


def test_holds_of_ended_runs_are_gone(outputs: Path) -> None:
    store = Store(outputs / "artifacts")
    name = "train-0000000000000000"
    with store.holding([name]):
        assert store.remove([name]) == set()
    assert store.remove([name]) == {name}
