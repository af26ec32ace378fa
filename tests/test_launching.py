"""Jobs that submitit starts: on this machine, with real processes; what ends one from outside."""

from __future__ import annotations

import contextlib
import json
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from hydra.core.utils import JobReturn, JobStatus
from omegaconf import OmegaConf

from pipeline.commands.composition import CONFIG_FOLDER, check_command_line, compose_request
from pipeline.host.errors import SubmissionError
from pipeline.host.files import PROJECT_ROOT, save_tensors
from pipeline.host.interruption import termination_as_interrupt
from pipeline.host.machine import Machine
from pipeline.run.request import Request
from pipeline.run.runner import run
from pipeline.sweeps import launching
from pipeline.sweeps.jobs import run_job, sweep_session
from pipeline.sweeps.states import RUNNING, JobRecord, Sweep, sweep_id
from pipeline.tracking.parents import JOB_TAG
from tests import forked
from tests.conftest import SMALL
from tests.test_sweeps import children, command
from tests.test_tracking import client, runs

pytestmark = pytest.mark.operations

FLOAT_ALONE = [*SMALL, "stages=[train]"]


def child_of(controller: str) -> int:
    """The process of the job that this process of submitit's watches."""
    listed = subprocess.check_output(["ps", "--ppid", controller, "-o", "pid="], text=True)
    return int(listed)


@pytest.mark.operations
def test_job_that_dies_is_told_and_the_other_finishes_when_submitit_runs_both_here(tmp_path: Path) -> None:
    outputs = tmp_path / "outputs"
    sweeping = subprocess.Popen(
        command(outputs, *SMALL, "stages=[train]", "train.epochs=1,200", "hydra/launcher=submitit_local"),
        cwd=PROJECT_ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    while not list(outputs.glob("artifacts/train-*")) or not (long := long_job(outputs)):
        assert sweeping.poll() is None, sweeping.communicate()
        time.sleep(0.1)
    os.kill(child_of(long), signal.SIGKILL)
    said, errors = sweeping.communicate(timeout=120)
    assert sweeping.returncode == 1
    assert "train.epochs=1: finished" in said
    assert "1 of 2 jobs failed" in errors
    assert f"train.epochs=200: its process ended without a result (finished); its log is {outputs}" in errors
    assert "Traceback" not in errors
    # Two at a time share the processors.
    shares = {run.data.tags["threads"] for run in children(outputs)}
    assert shares == {str(max(1, len(os.sched_getaffinity(0)) // 2))}


@pytest.mark.operations
@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM], ids=lambda one: one.name)
def test_jobs_end_too_when_the_command_that_has_started_them_here_is_interrupted(
    tmp_path: Path, sent: signal.Signals
) -> None:
    outputs = tmp_path / "outputs"
    sweeping = subprocess.Popen(
        command(outputs, *SMALL, "stages=[train]", "train.epochs=200", "seed=1,2", "hydra/launcher=submitit_local"),
        cwd=PROJECT_ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    while len(list(outputs.glob("artifacts/train-*/progress.pt"))) < 2:
        assert sweeping.poll() is None, sweeping.communicate()
        time.sleep(0.1)
    if sent == signal.SIGINT:  # as a terminal does
        os.killpg(sweeping.pid, sent)
    else:
        sweeping.send_signal(sent)
    _, errors = sweeping.communicate(timeout=120)
    assert sweeping.returncode == 130
    assert errors.splitlines() == ["error: interrupted; the same command goes on from the last finished epoch"]
    assert {run.info.status for run in children(outputs)} == {"KILLED"}
    assert len(children(outputs)) == 2
    with pytest.raises(ProcessLookupError):  # nobody of them is left
        os.killpg(sweeping.pid, 0)


@pytest.mark.operations
def test_jobs_end_too_when_they_wait_for_another_process_and_the_command_is_interrupted(tmp_path: Path) -> None:
    outputs = tmp_path / "outputs"
    asked = command(outputs, *FLOAT_ALONE, "seed=1,2", "hydra/launcher=submitit_local")
    typed = asked[asked.index("-m", 3) + 1 :]
    jobs = [job for job, _ in check_command_line(typed, multirun=True)]
    sweep = Sweep(outputs / "sweeps" / sweep_id(typed), typed, jobs)
    (sweep.folder / "jobs").mkdir(parents=True)
    with contextlib.ExitStack() as held:
        for job in sweep.all_jobs():
            held.enter_context(job.lock)
        sweeping = subprocess.Popen(
            asked, cwd=PROJECT_ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
        )
        while len(list(sweep.folder.glob(".submitit/*/*_submitted.pkl"))) < 2:
            assert sweeping.poll() is None, sweeping.communicate()
            time.sleep(0.1)
        time.sleep(10)  # until they wait
        sweeping.send_signal(signal.SIGTERM)
        _, errors = sweeping.communicate(timeout=60)
    assert sweeping.returncode == 130
    assert errors.splitlines() == ["error: interrupted; the same command goes on from the last finished epoch"]
    with pytest.raises(ProcessLookupError):
        os.killpg(sweeping.pid, 0)
    assert not list(outputs.glob("artifacts/train-*"))


def long_job(outputs: Path) -> str | None:
    """The number of the job with the long training, once it trains."""
    for log in outputs.glob("sweeps/*/.submitit/*/*_log.out"):
        if "train epoch 1/200" in log.read_text():
            return log.parent.name.rsplit("-", 1)[-1]
    return None


@contextmanager
def signalled(number: signal.Signals, condition: Callable[[], object]) -> Iterator[None]:
    """Send this process the signal as soon as the condition holds."""

    def send() -> None:
        while not condition() and not ended.is_set():
            time.sleep(0.02)
        if not ended.is_set():
            os.kill(os.getpid(), number)

    ended = threading.Event()
    sender = threading.Thread(target=send)
    sender.start()
    try:
        yield
    finally:
        ended.set()
        sender.join()


def test_run_is_killed_and_resumed_when_a_signal_handler_exits(
    small_request: Callable[..., Request], outputs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    request = small_request("stages=[train]", "train.epochs=3", "train.schedule=constant")
    before = signal.signal(signal.SIGUSR2, lambda *_: sys.exit(-1))  # as submitit does
    try:
        with (
            signalled(signal.SIGUSR2, lambda: list(outputs.glob("artifacts/train-*.partial/progress.pt"))),
            pytest.raises(SystemExit),
        ):
            run(request)
    finally:
        signal.signal(signal.SIGUSR2, before)
    (killed,) = runs(outputs)
    assert killed.info.status == "KILLED"
    assert "error" not in killed.data.tags
    run(request)
    assert "resumed after epoch" in "".join(capsys.readouterr())
    assert sorted(found.info.status for found in runs(outputs)) == ["FINISHED", "KILLED"]


class SignalsWhenSaved:
    """Sends SIGTERM in the middle of being written."""

    def __reduce__(self) -> tuple[Any, ...]:
        os.kill(os.getpid(), signal.SIGTERM)
        return (OrderedDict, ())  # which may be loaded


def test_checkpoint_is_whole_when_a_signal_comes_while_it_is_written(tmp_path: Path) -> None:
    path = tmp_path / "progress.pt"
    with pytest.raises(KeyboardInterrupt), termination_as_interrupt():
        save_tensors([SignalsWhenSaved(), torch.arange(1000)], path)
    assert torch.equal(torch.load(path, weights_only=True)[1], torch.arange(1000))


def test_predecessors_run_is_killed_when_a_job_is_run_again(outputs: Path) -> None:
    typed = [*FLOAT_ALONE, f"outputs={outputs}", "seed=1"]
    request = compose_request(typed)
    with sweep_session([*typed[:-1], "seed=1,2"], [typed, [*typed[:-1], "seed=2"]], request.config) as sweep:
        job = sweep.job(typed)
        job.write(JobRecord("seed=1", typed, RUNNING))  # and its process is gone
        left = {JOB_TAG: job.slug, "mlflow.parentRunId": sweep.parent_run_id}
        others = {**left, JOB_TAG: "another"}
        experiment = client(outputs).get_run(sweep.parent_run_id).info.experiment_id
        for tags in (left, others):
            client(outputs).create_run(experiment, tags=tags)
        run_job(request, sweep.folder, 1)
        by_job = sorted((run.data.tags[JOB_TAG] == job.slug, run.info.status) for run in children(outputs))
        assert by_job == [(False, "RUNNING"), (True, "FINISHED"), (True, "KILLED")]
        assert json.loads((sweep.folder / "jobs" / f"{job.slug}.json").read_text())["state"] == "finished"


def test_hosts_do_not_wait_for_each_others_measurements(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Machine(tmp_path).measuring():
        monkeypatch.setattr("pipeline.host.machine.gethostname", lambda: "elsewhere")
        with Machine(tmp_path).measuring():
            pass
    assert len(list(tmp_path.glob("machine-*.db"))) == 2


@pytest.fixture
def slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file with what squeue says, of a Slurm that takes jobs as its number 7 and runs none."""
    folder, queue = tmp_path / "bin", tmp_path / "queue"
    folder.mkdir()
    queue.write_text("7_0|RUNNING\n7_1|RUNNING\n")
    for name, line in {
        "sbatch": f"touch {tmp_path}/submitted; echo Submitted batch job 7",
        "squeue": f"cat {queue}",
        "srun": "",
        "scontrol": "",
    }.items():
        (folder / name).write_text(f"#!/bin/sh\n{line}\n")
        (folder / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(folder), prepend=":")
    monkeypatch.setattr(launching, "_BETWEEN_S", 0.0)
    monkeypatch.setattr(launching.SlurmSubmission, "_PATIENCE_S", 0.5)
    return queue


def test_jobs_on_slurm_are_found_again_and_waited_for_and_lost_ones_told(slurm: Path, tmp_path: Path) -> None:
    jobs = [["seed=1"], ["seed=2"]]
    sweep = Sweep(tmp_path / "sweeps" / "01234567", ["seed=1,2"], jobs)
    sweep.save()
    settings = yaml.safe_load((CONFIG_FOLDER / "hydra" / "launcher" / "submitit_slurm.yaml").read_text())
    settings |= {"submitit_folder": f"{sweep.folder}/.submitit/%j"}
    settings.pop("_target_")

    def launcher() -> launching.SlurmSubmission:
        made = launching.SlurmSubmission(**settings)
        sweeping = {"hydra": {"sweep": {"dir": str(sweep.folder)}}, "tracking": {"enabled": False, "uri": None}}
        config = OmegaConf.create({**sweeping, "force": "false"})
        made.setup(hydra_context=None, task_function=None, config=config)
        return made

    def end() -> None:
        while not (folders := list(sweep.folder.glob(".submitit/*-7_1"))):
            time.sleep(0.1)
        with (folders[0] / "7_1_0_result.pkl").open("wb") as stream:
            pickle.dump(("success", JobReturn(status=JobStatus.COMPLETED, _return_value={"speedup": 3.0})), stream)
        slurm.write_text("7_0|CANCELLED\n7_1|COMPLETED\n")

    ending = threading.Thread(target=end)
    ending.start()
    lost, done = launcher().launch(jobs, 0)
    ending.join()
    assert done.return_value == {"speedup": 3.0}
    assert str(lost._return_value) == "its process ended without a result (cancelled); it has not begun"
    assert [record.state for record in sweep.records()] == ["killed", "waiting"]
    # The same command again: nothing is submitted, unless Slurm does not say what it has.
    (tmp_path / "submitted").unlink()
    slurm.write_text("7_0|PENDING\n7_1|NODE_FAIL\n")
    again = [launcher()._start(sweep, [sweep.job(jobs[0])], 0)[0].job_id]
    assert again == ["7_0"]
    slurm.unlink()
    with pytest.raises(SubmissionError, match=r"squeue: cat: .*No such file"):
        launcher().launch(jobs, 0)
    assert not (tmp_path / "submitted").exists()


@pytest.mark.parametrize(
    ("override", "line", "hint"),
    [
        ("hydra.launcher.timeout_min=long", "hydra.launcher.timeout_min=long: Value 'long'", "Integer"),
        ("hydra.launcher.partiton=cpu", "hydra.launcher.partiton: no such setting; allowed: ", ".partition'?"),
    ],
)
def test_setting_of_the_launcher_is_refused_in_one_line_when_it_is_wrong(
    override: str, line: str, hint: str, tmp_path: Path
) -> None:
    asked = command(tmp_path / "outputs", *SMALL, "seed=0,1", "hydra/launcher=submitit_slurm", override)
    done = forked.run(asked)
    assert done.returncode == 2
    assert done.stderr.startswith(f"error: {line}")
    assert done.stderr.endswith(f"{hint}\n")
    assert done.stderr.count("\n") == 1
    assert not (tmp_path / "outputs").exists()
