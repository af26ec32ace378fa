"""Sweeps on a real Slurm: two nodes on this machine, one of which is lost; jobs preempted, cancelled, found again.

`make test-slurm` runs these: they take minutes, and want slurmctld, munged and root.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pipeline.host.files import PROJECT_ROOT
from tests.conftest import SMALL
from tests.test_sweeps import children, command, finished, sweep, tensors

TOOL = str(PROJECT_ROOT / "tools" / "slurm.sh")
ON_SLURM = ["hydra/launcher=submitit_slurm", "hydra.launcher.cpus_per_task=1"]
# On whatever number of threads a machine has, the serial sweep would train to other bits than jobs of one processor.
ONE_THREAD = {**os.environ, "OMP_NUM_THREADS": "1"}
RATES = ",".join(f"{rate:g}e-4" for rate in range(1, 9))
SIXTEEN_JOBS = [*SMALL, "backend=fbgemm,qnnpack", f"qat.learning_rate={RATES}"]
LONG_TRAINING = [*SMALL, "stages=[train]", "train.epochs=30"]
MINUTES = 60.0
# Sweeps under way, which a failed test leaves behind.
_started: list[subprocess.Popen[str]] = []


def missing() -> str | None:
    """Why there can be no Slurm here."""
    if os.environ.get("PIPELINE_TEST_SLURM") != "1":
        return "minutes on a real Slurm: make test-slurm runs them"
    absent = [name for name in ("slurmctld", "slurmd", "munged", "srun") if shutil.which(name) is None]
    if absent:
        return f"no {', '.join(absent)} here: apt-get install slurm-wlm munge"
    return None if os.geteuid() == 0 else "a node's daemon starts each job as its user: only root can have one"


pytestmark = [pytest.mark.operations, pytest.mark.skipif(missing() is not None, reason=missing() or "")]


def tool(*arguments: str) -> None:
    subprocess.run([TOOL, *arguments], check=True, stdout=subprocess.DEVNULL)


@pytest.fixture
def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The folder of a Slurm with two idle nodes, which sbatch and the like find."""
    folder = tmp_path / "slurm"
    tool("start", str(folder))
    monkeypatch.setenv("SLURM_CONF", str(folder / "slurm.conf"))
    try:
        yield folder
    finally:
        for process in _started:
            process.kill()
            process.communicate()
        _started.clear()
        tool("stop", str(folder))


def start(outputs: Path, *overrides: str) -> subprocess.Popen[str]:
    """A sweep on Slurm, under way."""
    process = subprocess.Popen(
        command(outputs, *ON_SLURM, *overrides),
        cwd=PROJECT_ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**ONE_THREAD, "SLURM_CONF": os.environ["SLURM_CONF"]},
    )
    _started.append(process)
    return process


def until(condition: Callable[[], object], process: subprocess.Popen[str], limit_s: float = 3 * MINUTES) -> None:
    deadline = time.monotonic() + limit_s
    while not condition():
        assert process.poll() is None, f"the sweep ended before its time: {process.communicate()}"
        assert time.monotonic() < deadline, "nothing came of waiting"
        time.sleep(0.2)


def checkpoints(outputs: Path) -> int:
    return len(list(outputs.glob("artifacts/train-*.partial/progress.pt")))


def done(outputs: Path) -> int:
    records = outputs.glob("sweeps/*/jobs/*.json")
    return sum(json.loads(path.read_text())["state"] == "finished" for path in records)


def number(outputs: Path) -> str:
    """Slurm's number of the array that the sweep's jobs are."""
    (ledger,) = outputs.glob("sweeps/*/submitted.json")
    return str(next(iter(json.loads(ledger.read_text()).values()))["number"]).split("_")[0]


def log(outputs: Path, task: int) -> str:
    return "".join(
        path.read_text() for path in outputs.glob(f"sweeps/*/.submitit/*-{number(outputs)}_{task}/*_log.out")
    )


def queued(*which: str) -> list[list[str]]:
    """Number, state and node of each job in the queue."""
    line = ["squeue", "--noheader", "--array", "--format=%i %T %N", *which]
    return [text.split() for text in subprocess.check_output(line, text=True).splitlines()]


def test_results_equal_a_serial_sweeps_when_a_node_is_lost_in_the_midst_of_16_jobs(
    cluster: Path, tmp_path: Path
) -> None:
    outputs, serial = tmp_path / "cluster" / "outputs", tmp_path / "serial" / "outputs"
    running = start(outputs, *SIXTEEN_JOBS)
    until(lambda: done(outputs) >= 3 and in_qat(outputs, "node2"), running)
    tool("kill-node", "node2", str(cluster))
    _, errors = running.communicate(timeout=15 * MINUTES)
    assert running.returncode == 0, errors
    assert "Traceback" not in errors
    ends = (cluster / "log" / "jobs.txt").read_text().splitlines()
    lost = sum("JobState=NODE_FAIL" in line and "NodeList=node2" in line for line in ends)

    alone = subprocess.run(
        command(serial, *SIXTEEN_JOBS), cwd=PROJECT_ROOT, capture_output=True, text=True, env=ONE_THREAD
    )
    assert alone.returncode == 0, alone.stderr
    assert len(finished(outputs)) == 16
    assert finished(outputs) == finished(serial)
    assert tensors(outputs) == tensors(serial)
    assert manifests(outputs) == manifests(serial)
    statuses = [run.info.status for run in children(outputs)]
    assert statuses.count("FINISHED") == 16
    assert 1 <= statuses.count("KILLED") == len(statuses) - 16 <= lost


def in_qat(outputs: Path, node: str) -> bool:
    """Whether a job on this node has begun quantization-aware training."""
    tasks = [job[0].split("_")[1] for job in queued("--states=R") if job[2:] == [node]]
    begun = [log(outputs, int(task)).partition("fuse      ")[2] for task in tasks]
    return any(text and "qat       done" not in text for text in begun)


def manifests(outputs: Path) -> dict[str, str]:
    """The hash of every model as its manifest has it."""
    read = {
        path.parent.name: json.loads(path.read_text())["files"] for path in outputs.glob("artifacts/*/manifest.json")
    }
    return {name: files["model.pt"] for name, files in read.items() if "model.pt" in files}


def test_job_goes_on_from_its_checkpoint_when_submitit_has_it_queued_again(cluster: Path, tmp_path: Path) -> None:
    outputs = tmp_path / "outputs"
    running = start(outputs, *LONG_TRAINING, "seed=0")
    until(lambda: checkpoints(outputs) == 1, running)
    (job,) = queued()
    subprocess.run(["scancel", "--signal=USR2", job[0]], check=True)  # what Slurm sends before the time limit
    _, errors = running.communicate(timeout=5 * MINUTES)
    assert running.returncode == 0, errors
    (text,) = (path.read_text() for path in outputs.glob("sweeps/*/.submitit/*/*_log.out"))
    assert text.count("epoch 1/30") == 1
    assert "resumed after epoch" in text
    assert "Traceback" not in text
    assert sorted(run.info.status for run in children(outputs)) == ["FINISHED", "KILLED"]
    assert list(outputs.glob("artifacts/*.partial")) == []


def test_job_goes_on_from_its_checkpoint_when_its_time_is_up(cluster: Path, tmp_path: Path) -> None:
    outputs = tmp_path / "outputs"
    # Slurm looks at time limits every half minute: the signal comes 50 to 80 s after the start.
    limits = ["hydra.launcher.timeout_min=2", "hydra.launcher.signal_delay_s=40"]
    running = start(outputs, *SMALL, "stages=[train]", "train.epochs=120", "seed=0", *limits)
    _, errors = running.communicate(timeout=15 * MINUTES)
    assert running.returncode == 0, errors
    (text,) = (path.read_text() for path in outputs.glob("sweeps/*/.submitit/*/*_log.out"))
    assert "Caught signal SIGUSR2" in text
    assert "remaining timeouts" in text
    assert "resumed after epoch" in text
    assert {run.info.status for run in children(outputs)} == {"FINISHED", "KILLED"}


def test_preempted_job_is_queued_again_and_cancelled_one_told_when_slurm_ends_both(
    cluster: Path, tmp_path: Path
) -> None:
    outputs = tmp_path / "outputs"
    running = start(outputs, *LONG_TRAINING, "seed=0,1,2")
    until(lambda: checkpoints(outputs) == 3, running)
    node = {job[0]: job[2] for job in queued()}
    array = number(outputs)
    # The last task has the number of the whole array: squeue, asked for that, tells of the others too.
    subprocess.run(["scancel", f"{array}_0"], check=True)
    urgent = ["sbatch", "--partition=urgent", "--exclusive", f"--nodelist={node[f'{array}_2']}", "--output=/dev/null"]
    subprocess.run([*urgent, "--wrap=sleep 5"], check=True, cwd=tmp_path, stdout=subprocess.DEVNULL)
    said, errors = running.communicate(timeout=5 * MINUTES)
    assert running.returncode == 1
    assert "Traceback" not in errors
    assert "1 of 3 jobs failed" in errors
    assert "seed=0: its process ended without a result (cancelled); its log is" in errors
    assert said.count(" finished") >= 2
    assert "resumed after epoch" in log(outputs, 2)
    assert "Traceback" not in log(outputs, 0) + log(outputs, 2)
    by_name = sorted((run.info.run_name, run.info.status) for run in children(outputs))
    assert [status for name, status in by_name if name == "seed=2"] == ["FINISHED", "KILLED"]
    assert [status for name, status in by_name if name == "seed=0"] == ["KILLED"]


def test_jobs_are_found_again_when_the_command_is_killed_and_given_again(cluster: Path, tmp_path: Path) -> None:
    outputs = tmp_path / "outputs"
    first = start(outputs, *LONG_TRAINING, "seed=0,1")
    until(lambda: checkpoints(outputs) == 2, first)
    first.kill()
    first.communicate()
    again = start(outputs, *LONG_TRAINING, "seed=0,1")
    said, errors = again.communicate(timeout=5 * MINUTES)
    assert again.returncode == 0, errors
    assert "2 of 2 jobs are in Slurm's queue already" in said
    assert [run.info.status for run in children(outputs)] == ["FINISHED"] * 2


def test_mistake_of_the_user_is_one_line_when_the_job_or_slurm_finds_it(cluster: Path, tmp_path: Path) -> None:
    outputs = tmp_path / "outputs"
    refused = sweep(outputs, *ON_SLURM, *SMALL, "seed=0,1", "hydra.launcher.partition=nowhere")
    assert refused.returncode == 2
    error = refused.stderr.splitlines()[-1]
    assert error.startswith("error: hydra/launcher=submitit_slurm: refused: ")
    assert "sbatch" not in refused.stderr.removesuffix(f"{error}\n")  # said once
    assert "Traceback" not in refused.stderr
    # Nine images cannot hold ten classes: it shows only when the job reads its data.
    failed = sweep(outputs, *ON_SLURM, *SMALL, "stages=[train]", "dataset.max_train_samples=9,200")
    assert failed.returncode == 1
    assert "1 of 2 jobs failed" in failed.stderr
    assert "Traceback" not in failed.stderr
    logs = [path.read_text() for path in outputs.glob("sweeps/*/.submitit/*/*_log.out")]
    assert sum("too few for a stratified choice of 10 classes" in text for text in logs) == 1
    assert all("Traceback" not in text for text in logs)
