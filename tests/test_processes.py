"""Training on several processes, what one would learn, written by one alone. The operations start the real torchrun."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pytest
from PIL import Image

from pipeline.commands.composition import compose_request
from pipeline.host.errors import UserError
from pipeline.host.files import PROJECT_ROOT
from pipeline.run.request import Request
from pipeline.run.runner import check_parts, run
from tests import forked
from tests.conftest import SMALL

TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m"]
TWO_EPOCHS = [*SMALL, "train.epochs=2", "train.batch_size=30", "qat.batch_size=30", "device=cpu"]


def start(*arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [*TORCHRUN, *arguments],
        cwd=PROJECT_ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
        # A shell lets what it starts in the background ignore SIGINT, and so would the tests and their children.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


def finish(process: subprocess.Popen[str]) -> tuple[int, str]:
    said, _ = process.communicate(timeout=300)
    return process.returncode, said


@pytest.fixture(scope="module")
def learned(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What one process and two have learned in the same steps: see processes_worker.py."""
    folder = tmp_path_factory.mktemp("learned")
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    of_torchrun = {"TORCHELASTIC_RUN_ID": "none", "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    of_torchrun |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    of_ranks = [of_torchrun | {"RANK": rank, "LOCAL_RANK": rank} for rank in "01"]
    with ThreadPoolExecutor() as threads:
        for name, environments in (("one", [{}]), ("two", of_ranks)):
            command = [sys.executable, "-m", "tests.processes_worker", str(folder / f"{name}.json")]
            started = [threads.submit(forked.run, command, env=os.environ | given) for given in environments]
            for ended in started:
                assert ended.result().returncode == 0, ended.result().stderr
    return {name: json.loads((folder / f"{name}.json").read_text()) for name in ("one", "two")}


@pytest.mark.operations
@pytest.mark.parametrize("network", ["train", "dropout"])
def test_float_losses_are_those_of_one_process_when_two_share_each_batch(learned: dict[str, Any], network: str) -> None:
    # In float64, where rounding does not grow to what a wrong statistic, mask or a repeated image would do.
    np.testing.assert_allclose(learned["two"][network]["losses"], learned["one"][network]["losses"], atol=1e-10)


@pytest.mark.operations
def test_reported_metrics_are_those_of_one_process_when_two_share_each_batch(learned: dict[str, Any]) -> None:
    one, two = (
        [value for metric, value, _ in learned[name]["train"]["history"] if metric != "train/seconds"]
        for name in ("one", "two")
    )
    np.testing.assert_allclose(two, one, atol=1e-8)


@pytest.mark.operations
def test_observers_see_the_whole_batch_when_two_processes_share_it(learned: dict[str, Any]) -> None:
    one, two = (learned[name]["qat"]["ranges"] for name in ("one", "two"))
    # Deeper ranges follow from values that were quantized, one of them otherwise here and there.
    np.testing.assert_allclose(two[:8], one[:8], rtol=0.005)
    np.testing.assert_allclose(two, one, rtol=0.1)


@pytest.mark.operations
@pytest.mark.parametrize("stage", ["train", "qat"])
def test_ranks_end_with_one_state_and_the_files_of_rank_0_when_trained(learned: dict[str, Any], stage: str) -> None:
    assert learned["two"][stage]["spread"] == 0
    written_by_0, written_by_1 = learned["two"][stage]["files_of_ranks"]
    assert written_by_0 in (1, 2)  # the checkpoint, and the best epoch where that is another
    assert written_by_1 == 0


@pytest.mark.operations
def test_run_goes_on_to_the_same_model_when_one_of_its_processes_is_killed(tmp_path: Path) -> None:
    undisturbed, outputs = tmp_path / "undisturbed", tmp_path / "outputs"
    status, said = finish(start("pipeline", *TWO_EPOCHS, f"outputs={undisturbed}", "stages=[train]", "tracking=off"))
    assert status == 0, said

    process = start("pipeline", *TWO_EPOCHS, f"outputs={outputs}", "stages=[train]")
    while not list(outputs.glob("artifacts/train-*.partial/progress.pt")):
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.05)
    os.kill(_follower(process.pid), signal.SIGKILL)
    status, said = finish(process)
    assert status != 0
    lines = [line for line in said.splitlines() if line.startswith("error: ")]
    assert len(lines) <= 1  # torchrun may end rank 0 before it has found out
    assert all("another of the 2 processes has ended" in line or "interrupted" in line for line in lines)
    assert "Traceback" not in said.split("Sending process")[0].split("torch/distributed/elastic")[0]

    status, said = finish(start("pipeline", *TWO_EPOCHS, f"outputs={outputs}", "stages=[train]"))
    assert status == 0, said
    assert said.count("resumed after epoch") == 1  # one of them speaks

    def trained(folder: Path) -> str:
        (manifest,) = folder.glob("artifacts/train-*/manifest.json")
        return json.loads(manifest.read_text())["files"]["model.pt"]

    assert trained(outputs) == trained(undisturbed)
    runs = mlflow.MlflowClient(f"sqlite:///{outputs}/mlflow.db").search_runs(["1"])
    assert sorted(run.info.status for run in runs) in (["FAILED", "FINISHED"], ["FINISHED", "KILLED"])
    (finished,) = [run for run in runs if run.info.status == "FINISHED"]
    assert finished.data.tags["processes"] == "2"
    assert len(list((outputs / "runs").glob("*/*/.hydra"))) == 2  # of two runs, not of four processes


@pytest.mark.operations
def test_processes_end_at_once_and_their_run_is_killed_when_interrupted(tmp_path: Path) -> None:
    outputs = tmp_path / "outputs"
    process = start("pipeline", *TWO_EPOCHS, "train.epochs=200", f"outputs={outputs}", "stages=[train]")
    while not list(outputs.glob("artifacts/train-*.partial/progress.pt")):
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does
    _, said = finish(process)
    lines = [line for line in said.splitlines() if line.startswith("error: ")]
    assert lines == ["error: interrupted; the same command goes on from the last finished epoch"]
    assert "forcefully" not in said  # torchrun, after half a minute
    (run,) = mlflow.MlflowClient(f"sqlite:///{outputs}/mlflow.db").search_runs(["1"])
    assert run.info.status == "KILLED"


def test_network_interface_is_asked_for_when_this_machines_name_leads_to_itself(
    small_request: Callable[..., Request], monkeypatch: pytest.MonkeyPatch
) -> None:
    of_torchrun = {"TORCHELASTIC_RUN_ID": "none", "RANK": "1", "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "1"}
    for variable, value in of_torchrun.items():
        monkeypatch.setenv(variable, value)
    monkeypatch.setattr("socket.gethostname", lambda: "localhost")
    with pytest.raises(UserError, match=r"GLOO_SOCKET_IFNAME is not set, .*127\.0\.0\.1.*allowed: the network"):
        run(small_request("device=cpu", "train.batch_size=30", "qat.batch_size=30"))


def _follower(torchrun: int) -> int:
    """The process number 1 among the children of torchrun."""
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        children = Path(f"/proc/{torchrun}/task/{torchrun}/children").read_text().split()
        for child in children:
            if re.search(rb"\0RANK=1\0", b"\0" + Path(f"/proc/{child}/environ").read_bytes()):
                return int(child)
    raise AssertionError("torchrun has no process number 1")


@pytest.mark.parametrize(
    ("override", "named"),
    [
        ("train.batch_size=33", "train.batch_size=33: 2 processes share each batch equally; allowed: a multiple of 2"),
        ("qat.compile=true", "qat.compile=true: allowed with 2 processes: false"),
        ("backend.observer=histogram", "backend.observer=histogram: 2 processes cannot agree on its ranges"),
        ("backend.fake_quantize=false", "backend.fake_quantize=false: allowed with 2 processes: true"),
    ],
)
def test_setting_is_refused_when_processes_cannot_share_it(
    monkeypatch: pytest.MonkeyPatch, override: str, named: str
) -> None:
    for variable, value in {"TORCHELASTIC_RUN_ID": "none", "RANK": "0", "WORLD_SIZE": "2"}.items():
        monkeypatch.setenv(variable, value)
    with pytest.raises(UserError, match=re.escape(named)):
        check_parts(compose_request([override]).config)


@pytest.mark.operations
def test_sweep_is_refused_in_one_line_when_started_by_torchrun(tmp_path: Path) -> None:
    status, said = finish(start("pipeline", "-m", f"outputs={tmp_path}", "seed=0,1"))
    assert status != 0
    assert [line for line in said.splitlines() if line.startswith("error: ")] == [
        "error: -m: a sweep of runs on several processes; allowed with torchrun: one run"
    ]


@pytest.mark.operations
def test_run_ends_in_one_line_when_the_processes_see_other_data(tmp_path: Path) -> None:
    for rank in range(2):
        for label, name in enumerate(("cat", "dog")):
            (tmp_path / f"copy{rank}" / name).mkdir(parents=True)
            for index in range(20):
                path = tmp_path / f"copy{rank}" / name / f"{index}.png"
                Image.new("RGB", (8, 8), (10 * index, 100 * label, rank)).save(path)
    asked = ["dataset=image_folder", f"dataset.root={tmp_path}/copy${{oc.env:RANK}}", "dataset.image_size=32"]
    sizes = ["train.epochs=1", "train.batch_size=4", "qat.batch_size=4", "device=cpu", "stages=[train]"]
    status, said = finish(start("pipeline", *asked, *sizes, f"outputs={tmp_path / 'outputs'}"))
    assert status != 0
    (line,) = [line for line in said.splitlines() if line.startswith("error: ")]
    assert line.startswith(
        "error: torchrun: processes 1 see other data, settings or code than rank 0, which trains train-"
    )
    assert not list((tmp_path / "outputs").glob("artifacts/train-*/manifest.json"))
