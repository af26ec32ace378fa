"""Whole runs: what is cached, what is made again, what is refused, and that runs repeat bit for bit."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from pipeline.commands.composition import compose_request
from pipeline.host.errors import UserError
from pipeline.host.files import PROJECT_ROOT, save_tensors, sha256
from pipeline.run.plan import make_plan
from pipeline.run.request import Request
from pipeline.run.runner import run
from tests import forked
from tests.conftest import SMALL

STAGES = ["train", "fuse", "qat", "convert", "evaluate"]


@pytest.fixture
def copied(finished_outputs: Path, outputs: Path) -> Path:
    """The artifacts of a finished run, copied: this test may change them."""
    shutil.copytree(finished_outputs / "artifacts", outputs / "artifacts")
    return outputs


def states(capsys: pytest.CaptureFixture[str]) -> dict[str, str]:
    """What the stage lines said: cached, or done."""
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    return {line[0]: line[1] for line in lines if line and line[0] in STAGES and line[1] in ("cached", "done")}


def keys(*overrides: str) -> dict[str, str]:
    return {step.stage.name: step.key for step in make_plan(compose_request(list(overrides)).config).steps}


def changed(*overrides: str) -> list[str]:
    """The stages whose key differs from the default run's."""
    before, after = keys(), keys(*overrides)
    return [name for name in STAGES if before[name] != after[name]]


@pytest.mark.parametrize(
    ("override", "stages"),
    [
        ("qat.epochs=3", ["qat", "convert", "evaluate"]),
        ("backend=qnnpack", ["qat", "convert", "evaluate"]),
        ("backend.skip_layers=[fc]", ["qat", "convert", "evaluate"]),
        ("backend.activation_bits=8", ["qat", "convert", "evaluate"]),
        ("fuse.mode=eval", ["fuse", "qat", "convert", "evaluate"]),
        ("ptq.calibration_samples=9", ["qat", "convert", "evaluate"]),
        ("sensitivity.samples=9", []),
        ("train.learning_rate=0.01", STAGES),
        ("model.stem=small", STAGES),
        ("dataset.image_size=40", STAGES),
        ("dataset.max_train_samples=99", ["train", "fuse", "qat", "convert", "evaluate"]),
        ("seed=1", STAGES),
        ("evaluate.repeats=7", ["evaluate"]),
        ("dataset.max_test_samples=9", ["evaluate"]),
        ("dataset.max_image_megapixels=50", STAGES),
        ("dataset.max_image_megapixels=179", []),
        ("dataset.root=elsewhere", []),
        ("dataset.mirror=elsewhere", []),
        ("dataset.workers=1", []),
        ("dataset.loading=memory", []),
        ("tracking.run_name=other", []),
        ("outputs=elsewhere", []),
        ("force=true", []),
    ],
)
def test_key_changes_only_where_the_result_depends_on_the_setting(override: str, stages: list[str]) -> None:
    assert changed(override) == stages


def test_everything_is_cached_and_the_metrics_are_the_same_when_run_again(
    copied: Path, small_request: Callable[..., Request], capsys: pytest.CaptureFixture[str]
) -> None:
    first = run(small_request("tracking=off")).metrics
    assert states(capsys) == dict.fromkeys(STAGES, "cached")
    second = run(small_request("tracking=off")).metrics
    assert states(capsys) == dict.fromkeys(STAGES, "cached")
    assert first == second
    assert first["int8/size_mb"] < first["fp32/size_mb"]


def test_only_the_evaluation_runs_when_its_repeats_change(
    copied: Path, small_request: Callable[..., Request], capsys: pytest.CaptureFixture[str]
) -> None:
    run(small_request("tracking=off", "evaluate.repeats=2"))
    assert states(capsys) == dict.fromkeys(STAGES, "cached") | {"evaluate": "done"}


def test_that_stage_and_what_follows_run_when_forced(
    copied: Path, small_request: Callable[..., Request], capsys: pytest.CaptureFixture[str]
) -> None:
    run(small_request("tracking=off", "force=convert"))
    assert states(capsys) == dict.fromkeys(STAGES, "cached") | {"convert": "done", "evaluate": "done"}


def test_stages_run_alone_on_what_an_earlier_run_left_when_chosen(
    copied: Path, small_request: Callable[..., Request], capsys: pytest.CaptureFixture[str]
) -> None:
    for left in (copied / "artifacts").glob("convert-*"):
        shutil.rmtree(left)
    metrics = run(small_request("tracking=off", "stages=[convert,evaluate]")).metrics
    assert states(capsys) == {"convert": "done", "evaluate": "cached"}
    assert "speedup" in metrics


def test_missing_stage_is_named_when_nothing_was_left_for_the_chosen_ones(
    copied: Path, small_request: Callable[..., Request]
) -> None:
    for left in (copied / "artifacts").glob("qat-*"):
        shutil.rmtree(left)
    with pytest.raises(UserError, match=r"stages=\[convert,evaluate\]: .*run stage qat first"):
        run(small_request("tracking=off", "stages=[convert,evaluate]", "force=convert"))


@pytest.mark.parametrize("damage", ["truncate", "manifest", "no manifest", "missing model"])
def test_damaged_artifact_is_noticed_and_made_again(
    copied: Path, small_request: Callable[..., Request], capsys: pytest.CaptureFixture[str], damage: str
) -> None:
    (folder,) = (copied / "artifacts").glob("fuse-*")
    digest = sha256(folder / "model.pt")
    if damage == "truncate":
        with (folder / "model.pt").open("r+b") as stream:
            stream.truncate(1000)
    elif damage == "manifest":
        (folder / "manifest.json").write_text("{not json")
    elif damage == "no manifest":
        (folder / "manifest.json").unlink()
    else:
        (folder / "model.pt").unlink()
    run(small_request("tracking=off"))
    captured = capsys.readouterr()
    assert captured.err.count("is damaged and will be made again") == 1
    assert "fuse      done" in captured.out
    assert sha256(folder / "model.pt") == digest


def test_manifest_tells_what_was_hashed_and_where_it_was_made(finished_outputs: Path) -> None:
    (folder,) = (finished_outputs / "artifacts").glob("qat-*")
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["hashed"]["qat"]["epochs"] == 1
    assert "root" not in manifest["hashed"]["dataset"]
    assert manifest["device"] == "cpu"
    assert manifest["machine"].keys() == {"cpu", "torch", "python"}
    assert [path.name for path in finished_outputs.glob("artifacts/*.partial")] == []


def test_whole_run_repeats_bit_for_bit(
    finished_outputs: Path, small_request: Callable[..., Request], outputs: Path
) -> None:
    run(small_request("tracking=off"))
    made = sorted(finished_outputs.glob("artifacts/*/model.pt"))
    assert len(made) == 4
    for model in made:
        assert sha256(outputs / model.relative_to(finished_outputs)) == sha256(model)


def test_what_follows_is_made_again_when_an_earlier_result_was_replaced(
    copied: Path, small_request: Callable[..., Request], capsys: pytest.CaptureFixture[str]
) -> None:
    # Another float model under the same key, as a GPU or another number of threads would leave it.
    (folder,) = (copied / "artifacts").glob("train-*")
    state = torch.load(folder / "model.pt", weights_only=True)
    state["fc.bias"] += 1
    save_tensors(state, folder / "model.pt")
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["files"]["model.pt"] = sha256(folder / "model.pt")
    (folder / "manifest.json").write_text(json.dumps(manifest))
    run(small_request("tracking=off"))
    assert states(capsys) == dict.fromkeys(STAGES, "done") | {"train": "cached"}


def test_cut_off_writes_do_not_enter_the_artifact_when_a_run_goes_on(
    small_request: Callable[..., Request], outputs: Path
) -> None:
    request = small_request("tracking=off", "stages=[train]")
    (step,) = make_plan(request.config).steps
    partial = outputs / "artifacts" / f"{step.artifact}.partial"
    partial.mkdir(parents=True)
    (partial / "progress.pt.999.tmp").write_bytes(b"cut off")
    (partial / "progress.pt").write_bytes(b"no checkpoint")
    run(request)
    files = {path.name for path in (outputs / "artifacts" / step.artifact).iterdir()}
    assert files == {"model.pt", "manifest.json"}


@pytest.mark.operations
def test_run_goes_on_from_the_last_epoch_when_its_process_was_killed(outputs: Path, tmp_path: Path) -> None:
    overrides = [*SMALL, "train.epochs=4", "stages=[train]", "tracking=off"]
    command = [sys.executable, "-m", "pipeline", *overrides, f"outputs={outputs}"]
    process = subprocess.Popen(command, cwd=PROJECT_ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    for line in process.stderr:
        if "epoch 2/4" in line:
            break
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert [path.suffix for path in (outputs / "artifacts").glob("train-*")] == [".partial"]
    resumed = forked.run(command, check=True)
    assert "resumed after epoch" in resumed.stdout
    assert "epoch 1/4" not in resumed.stderr
    undisturbed = tmp_path / "undisturbed"
    subprocess.run([*command[:-1], f"outputs={undisturbed}"], cwd=PROJECT_ROOT, capture_output=True, check=True)
    (one,), (other,) = (folder.glob("artifacts/train-*/model.pt") for folder in (outputs, undisturbed))
    assert sha256(one) == sha256(other)


def test_second_process_waits_and_takes_the_result_when_a_first_is_making_it(outputs: Path) -> None:
    command = [sys.executable, "-m", "pipeline", *SMALL, "stages=[train]", "tracking=off", f"outputs={outputs}"]
    with ThreadPoolExecutor() as threads:
        ended = list(threads.map(forked.run, [command, command]))
    assert [done.returncode for done in ended] == [0, 0]
    printed = [done.stdout for done in ended]
    assert sum("train     done" in text for text in printed) == 1
    assert sum("train     cached" in text for text in printed) == 1


def test_artifact_is_made_again_and_no_other_file_shown_when_its_manifest_is_forged(
    small_request: Callable[..., Request], copied: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    secret = tmp_path / "secret.txt"
    secret.write_text("hunter2")
    (path,) = copied.glob("artifacts/evaluate-*/manifest.json")
    manifest = json.loads(path.read_text())
    outside = os.path.relpath(secret, path.parent)
    for files in (manifest["files"], {**manifest["files"], outside: sha256(secret)}):
        path.write_text(json.dumps({**manifest, "attachments": [outside], "files": files}))
        run(small_request())
        assert f"{path.parent} is damaged and will be made again" in capsys.readouterr().err
    assert not list(copied.glob("mlartifacts/**/secret.txt"))
