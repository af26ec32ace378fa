"""Faults of the machine and of others: a kill, a full disk, a read-only folder, a bomb, a lie in the store.

Real processes through `python -m pipeline`. By default one or two stages of each fault; `make test-operations` asks for
every stage and writes the table of docs/faults.md into outputs/faults.md.
"""

from __future__ import annotations

import contextlib
import fnmatch
import json
import os
import pickle
import pkgutil
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from pipeline.commands import composition
from pipeline.commands.composition import compose_request
from pipeline.host.errors import UserError
from pipeline.host.faults import fault
from pipeline.host.files import PROJECT_ROOT, sha256
from pipeline.host.interruption import interruption_as_one_line, stop_if_interrupted, termination_as_interrupt
from pipeline.training import loop as training
from pipeline.training.context import PROGRESS_FILE
from tests.conftest import BRIEF, SMALL
from tests.fault_table import note
from tests.test_tracking import runs

pytestmark = pytest.mark.operations

ALL = os.environ.get("PIPELINE_FAULTS") == "all"
# How often each stage is interrupted by each signal.
MOMENTS = int(os.environ.get("PIPELINE_FAULT_MOMENTS", "1"))
STAGES = ["train", "fuse", "finetune", "ptq", "qat", "sensitivity", "convert", "evaluate", "export", "benchmark"]
WALKED = STAGES if ALL else ["train"]
# Those that the fault strikes; all by default.
STRUCK = os.environ.get("PIPELINE_FAULT_STAGES", ",".join(WALKED)).split(",")
TINY = [
    *BRIEF,
    "model=mobilenet_v2",
    "backend=qnnpack",
    "model.stem=small",
    f"stages=[{','.join(WALKED)}]",
    "ptq.calibration_samples=20",
    "sensitivity.samples=10",
    "export.min_agreement=0",
    *(f"benchmark.{given}" for given in ("min_repeats=3", "passes=2", "memory=false", "max_seconds=1")),
    "benchmark.batch_sizes=[1]",
]
LIMIT = 600


def command(outputs: Path, *overrides: str) -> list[str]:
    return [sys.executable, "-m", "pipeline", *TINY, f"outputs={outputs}", *overrides]


def hear_signals() -> None:
    """A shell in the background lets its children ignore Ctrl-C; a user's terminal does not."""
    for one in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(one, signal.default_int_handler if one == signal.SIGINT else signal.SIG_DFL)


def start(arguments: list[str]) -> subprocess.Popen[str]:
    pipe = subprocess.PIPE
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        arguments, cwd=PROJECT_ROOT, stdout=pipe, stderr=pipe, text=True, preexec_fn=hear_signals, env=environment
    )


def finish(arguments: list[str]) -> tuple[int, str, str]:
    process = start(arguments)
    out, err = process.communicate(timeout=LIMIT)
    return process.returncode, out, err


def said(err: str) -> list[str]:
    """The error lines; the progress of epochs and the warnings are no errors."""
    assert "Traceback" not in err, err
    return [line for line in err.splitlines() if line.startswith("error: ")]


def one_error(err: str) -> str:
    (line,) = said(err)
    return line.removeprefix("error: ")


def models(outputs: Path) -> dict[str, str]:
    """The hash of every model that the manifests name, and the manifests are true."""
    found = {}
    for path in sorted((outputs / "artifacts").glob("*/manifest.json")):
        files = json.loads(path.read_text())["files"]
        for name, digest in files.items():
            assert sha256(path.parent / name) == digest
        if "model.pt" in files:
            found[path.parent.name] = files["model.pt"]
    assert list((outputs / "artifacts").glob("*.partial")) == []
    return found


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    outputs = tmp_path_factory.mktemp("undisturbed") / "outputs"
    status, _, err = finish(command(outputs))
    assert status == 0, err
    return outputs


def seconds_of(stage: str, outputs: Path) -> float:
    (path,) = (outputs / "artifacts").glob(f"{stage}-*/manifest.json")
    return float(json.loads(path.read_text())["seconds"])


def wait_for_stage(process: subprocess.Popen[str], stage: str, outputs: Path) -> bool:
    """Whether the stage began before the process ended."""
    while process.poll() is None:
        if any((outputs / "artifacts").glob(f"{stage}-*.partial")):
            return True
        time.sleep(0.005)
    return False


def stands_still(process: subprocess.Popen[str]) -> bool:
    """Stop the process; whether it has, and did not end before."""
    process.send_signal(signal.SIGSTOP)
    while process.poll() is None:
        if Path(f"/proc/{process.pid}/stat").read_text().rsplit(")", 1)[1].split()[0] == "T":
            return True
        time.sleep(0.001)
    return False


def strike(
    stage: str, outputs: Path, undisturbed: Path, moments: random.Random, blow: Callable[[subprocess.Popen[str]], bool]
) -> tuple[int, str]:
    """Strike the command at a random moment of this stage, while it stands still: again, where the stage was over.

    Gives the exit status and what was said on standard error.
    """
    for _ in range(10):
        process = start(command(outputs))
        if wait_for_stage(process, stage, outputs):
            time.sleep(moments.uniform(0, 0.9 * seconds_of(stage, undisturbed)))
            struck = stands_still(process) and any((outputs / "artifacts").glob(f"{stage}-*.partial"))
            if struck:
                blow(process)
            process.send_signal(signal.SIGCONT)
            if struck:
                _, err = process.communicate(timeout=LIMIT)
                return process.returncode, err
        _, err = process.communicate(timeout=LIMIT)
        assert process.returncode == 0, err
        for made in WALKED[WALKED.index(stage) :]:
            for folder in (outputs / "artifacts").glob(f"{made}-*"):
                shutil.rmtree(folder)
    raise AssertionError(f"{stage} is over too soon")


# --- signals

# By default test_runner.py and test_sweeps.py kill, and test_tracking.py terminates.
SIGNALS = [signal.SIGKILL, signal.SIGTERM, signal.SIGINT]


@pytest.mark.skipif(not ALL, reason="make test-operations")
@pytest.mark.parametrize("sent", SIGNALS, ids=lambda one: one.name)
def test_run_equals_an_undisturbed_one_when_each_stage_was_ended_by_a_signal(
    sent: signal.Signals, undisturbed: Path, tmp_path: Path
) -> None:
    """One `outputs` for all stages: the same command goes on from stage to stage, and is ended in each."""
    moments = random.Random(sent.value)
    outputs = tmp_path / "outputs"
    for stage in STRUCK * MOMENTS:
        status, err = strike(stage, outputs, undisturbed, moments, lambda process: process.send_signal(sent))
        if sent == signal.SIGKILL:
            assert status == -signal.SIGKILL, err
            shown = "(nothing)"
        else:
            assert status in (130, -signal.SIGINT), err
            shown = one_error(err)
            assert shown == "interrupted; the same command goes on from the last finished epoch"
            assert {run.info.status for run in runs(outputs)} <= {"KILLED", "FINISHED"}
        note(sent.name, stage, "the epoch or stage under way", shown)
    status, _, err = finish(command(outputs))
    assert status == 0, err
    assert models(outputs) == models(undisturbed)


def swallowed(call: Callable[..., Any]) -> Callable[..., Any]:
    """The same function, in the course of which a signal comes that a library swallows."""

    def swallowing(*given: Any, **named: Any) -> Any:
        with contextlib.suppress(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(5)
        return call(*given, **named)

    return swallowing


# What a library swallows it in, and what is there then: the stage whole where nothing asked in the course of it.
SWALLOWED = [
    ("datasets.catalogue.load_training", ["train-*.partial"], "KILLED"),
    ("flows.eager.flow.fuse", ["fuse-*", "train-*"], "KILLED"),
    ("run.runner.keep_model", ["fuse-*", "qat-*", "train-*"], "KILLED"),
    ("run.runner.check_parts", [], None),
]


@pytest.mark.parametrize(("place", "left", "status"), SWALLOWED, ids=[place for place, _, _ in SWALLOWED])
def test_run_is_interrupted_soon_after_when_a_library_has_swallowed_the_signal(
    place: str,
    left: list[str],
    status: str | None,
    outputs: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As the command does it: one block around all, within which signals come, and the run's within it."""
    whole = f"pipeline.{place}"
    monkeypatch.setattr(whole, swallowed(pkgutil.resolve_name(whole)))
    monkeypatch.setattr(sys, "argv", ["pipeline", *SMALL, "stages=[train,fuse,qat]", f"outputs={outputs}"])
    handlers = {one: signal.getsignal(one) for one in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    try:
        with pytest.raises(SystemExit) as ended, interruption_as_one_line():
            composition.main()
    finally:
        for one, handler in handlers.items():
            signal.signal(one, handler)
    assert ended.value.code == 130
    assert one_error(capsys.readouterr().err).startswith("interrupted")
    found = sorted(path.name for path in (outputs / "artifacts").glob("*-*"))
    assert len(found) == len(left)
    assert all(fnmatch.fnmatch(name, pattern) for name, pattern in zip(found, left, strict=True)), found
    assert [name.endswith(".partial") for name in found] == [pattern.endswith(".partial") for pattern in left]
    assert [run.info.status for run in runs(outputs)] == ([status] if status else [])


IN_A_FINALIZER = """
import os, signal, weakref
from pipeline.host.interruption import interruption_as_one_line, stop_if_interrupted

class Thing: pass

with interruption_as_one_line():
    thing = Thing()
    watcher = weakref.ref(thing, lambda reference: os.kill(os.getpid(), signal.SIGTERM))
    del thing
    print("went on", flush=True)
    stop_if_interrupted()
"""


def test_interruption_is_told_later_when_it_came_in_a_finalizer() -> None:
    ended = subprocess.run([sys.executable, "-c", IN_A_FINALIZER], cwd=PROJECT_ROOT, capture_output=True, text=True)
    assert (ended.returncode, ended.stdout, ended.stderr) == (130, "went on\n", "error: interrupted\n")


def test_run_ends_when_a_library_has_swallowed_that_its_job_is_queued_again() -> None:
    def queue_again(signal_number: int, frame: object) -> None:
        raise SystemExit(-1)  # as submitit does

    before = signal.signal(signal.SIGUSR2, queue_again)
    try:
        with termination_as_interrupt():
            with contextlib.suppress(SystemExit):
                signal.raise_signal(signal.SIGUSR2)
            with pytest.raises(KeyboardInterrupt):
                stop_if_interrupted()
    finally:
        signal.signal(signal.SIGUSR2, before)


@pytest.mark.parametrize("delay", [0.0, 0.05, 0.3, 1.0] if ALL else [0.3])
@pytest.mark.parametrize("sent", [signal.SIGTERM, signal.SIGINT] if ALL else [signal.SIGINT], ids=lambda one: one.name)
def test_command_ends_in_one_line_when_it_is_interrupted_while_it_starts(
    sent: signal.Signals, delay: float, tmp_path: Path
) -> None:
    process = start(command(tmp_path / "outputs"))
    while process.poll() is None and not handles_termination(process.pid):  # Python's own words, until then
        time.sleep(0.002)
    time.sleep(delay)
    process.send_signal(sent)
    _, err = process.communicate(timeout=LIMIT)
    # Python itself dies by Ctrl-C, which a shell shows as 130, when it came amid the making of a dataclass.
    assert process.returncode in (130, -signal.SIGINT), err
    assert one_error(err).startswith("interrupted")
    note(sent.name, "(start-up)", "nothing", one_error(err))


def handles_termination(pid: int) -> bool:
    """Whether the process has a handler for SIGTERM: some 10 ms after the package was found."""
    caught = re.search(r"^SigCgt:\s*(\w+)", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE)
    return caught is not None and bool(int(caught[1], 16) >> (signal.SIGTERM - 1) & 1)


# --- the disk


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of its own, of 400 MB."""
    mounted = tmp_path / "disk"
    mounted.mkdir()
    if (
        os.geteuid() != 0
        or subprocess.run(["mount", "-t", "tmpfs", "-o", "size=400m", "tmpfs", mounted], capture_output=True).returncode
    ):
        pytest.skip("mounting a small file system needs root and the right to mount")
    yield mounted
    subprocess.run(["umount", "-l", mounted], check=True)


def fill(disk: Path) -> None:
    """Take all space that is left, in a file `filler`."""
    filler = disk / "filler"
    with filler.open("wb", buffering=0) as stream, contextlib.suppress(OSError):
        for size in (1 << 20, 1 << 12, 1):
            with contextlib.suppress(OSError):
                while True:
                    stream.write(b"\0" * size)


@pytest.mark.skipif(not ALL, reason="make test-operations")
def test_run_ends_in_one_line_and_goes_on_when_the_disk_is_full_in_each_stage(
    small_disk: Path, undisturbed: Path
) -> None:
    outputs = small_disk / "outputs"
    moments = random.Random(7)
    for stage in STRUCK:
        status, err = strike(stage, outputs, undisturbed, moments, lambda process: fill(small_disk))
        (small_disk / "filler").unlink()
        assert status == 2, err
        line = one_error(err)
        assert "the disk is full; once there is space, the same command goes on" in line
        note("disk full", stage, "the epoch or stage under way", line)
    status, _, err = finish(command(outputs))
    assert status == 0, err
    assert models(outputs) == models(undisturbed)


def test_run_goes_on_when_the_disk_was_full(
    small_disk: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """In this process, which makes it cheap: first the checkpoint does not fit, then nothing does."""
    asked = [*BRIEF, "model=mobilenet_v2", "stages=[train]", f"outputs={small_disk / 'outputs'}"]
    subprocess.run(["mount", "-o", "remount,size=8m", small_disk], check=True)
    line = refused(asked, capsys, monkeypatch)
    assert f"{PROGRESS_FILE}: the disk is full; once there is space, the same command goes on" in line
    fill(small_disk)
    assert "the disk is full" in refused(asked, capsys, monkeypatch)
    (small_disk / "filler").unlink()
    subprocess.run(["mount", "-o", "remount,size=400m", small_disk], check=True)
    composition.main()
    assert len(models(small_disk / "outputs")) == 1
    assert [run.info.status for run in runs(small_disk / "outputs")] == ["FINISHED", "FAILED"]


@pytest.mark.parametrize("name", ["torchscript", "onnxruntime", "openvino"])
def test_full_disk_is_told_from_a_network_that_cannot_be_exported(name: str, small_disk: Path) -> None:
    from pipeline import models as networks
    from pipeline import runtimes
    from pipeline.datasets.catalogue import info
    from pipeline.host.files import check_space

    pytest.importorskip("torch" if name == "torchscript" else name)
    config = compose_request([*BRIEF, "model=mobilenet_v2"]).config
    network = networks.build(config.model, info(config.dataset))
    subprocess.run(["mount", "-o", "remount,size=2m", small_disk], check=True)
    with pytest.raises(Exception) as told:  # noqa: PT011 (whatever the exporter says)
        runtimes.registry()[name].export(network, torch.zeros(1, 1, 32, 32), small_disk)
    if fault(told.value) is None and not isinstance(told.value, UserError):
        with pytest.raises(OSError, match="No space left"):
            check_space(small_disk)


# What the first writes need: Hydra's record, MLflow's database, its files, the checkpoint.
@pytest.mark.skipif(not ALL, reason="make test-operations")
@pytest.mark.parametrize("kilobytes", [4, 40, 200, 700, 1400, 8000])
def test_run_ends_in_one_line_and_goes_on_when_the_disk_is_full_from_the_start(
    kilobytes: int, small_disk: Path, undisturbed: Path
) -> None:
    subprocess.run(["mount", "-o", f"remount,size={kilobytes}k", small_disk], check=True)
    outputs = small_disk / "outputs"
    asked = command(outputs, "stages=[train]")
    status, _, err = finish(asked)
    assert status == 2, err
    line = one_error(err)
    assert "the disk is full; once there is space, the same command goes on" in line
    assert "Error executing job" not in err  # what Hydra says of what it does not know
    subprocess.run(["mount", "-o", "remount,size=400m", small_disk], check=True)
    status, _, err = finish(asked)
    assert status == 0, err
    assert models(outputs).items() <= models(undisturbed).items()
    note(f"disk of {kilobytes} kB", "(any)", "nothing", line)


@pytest.mark.skipif(not ALL, reason="make test-operations")
@pytest.mark.parametrize("kilobytes", [40, 1400, 8000])
def test_sweep_ends_in_its_lines_and_goes_on_when_the_disk_is_full(kilobytes: int, small_disk: Path) -> None:
    subprocess.run(["mount", "-o", f"remount,size={kilobytes}k", small_disk], check=True)
    program, *given = command(small_disk / "outputs", "stages=[train]", "seed=0,1")
    asked = [program, "-m", "pipeline", "-m", *given[2:]]
    status, _, err = finish(asked)
    assert status in (1, 2), err
    assert said(err), err
    assert "the disk is full" in err
    subprocess.run(["mount", "-o", "remount,size=400m", small_disk], check=True)
    status, _, err = finish(asked)
    assert status == 0, err
    assert len(models(small_disk / "outputs")) == 2
    note(f"disk of {kilobytes} kB", "(sweep)", "nothing", said(err)[0] if said(err) else "the disk is full")


@pytest.mark.skipif(not ALL, reason="make test-operations")
def test_run_ends_in_one_line_and_goes_on_when_the_folder_becomes_read_only_in_each_stage(
    small_disk: Path, undisturbed: Path
) -> None:
    outputs = small_disk / "outputs"
    moments = random.Random(8)

    def becomes_read_only(process: subprocess.Popen[str]) -> None:
        """As a disk with an error does, also while files are open for writing, when `remount` is refused."""
        for options in (["--bind", small_disk], ["-o", "remount,bind,ro"]):
            subprocess.run(["mount", *options, small_disk], check=True)

    for stage in STRUCK:
        status, err = strike(stage, outputs, undisturbed, moments, becomes_read_only)
        subprocess.run(["umount", small_disk], check=True)
        assert status == 2, err
        line = one_error(err)
        assert "read-only" in line
        note("becomes read-only", stage, "the epoch or stage under way", line)
    status, _, err = finish(command(outputs))
    assert status == 0, err
    assert models(outputs) == models(undisturbed)


@pytest.mark.parametrize("key", ["outputs", "dataset.root"] if ALL else ["outputs"])
def test_run_is_refused_in_one_line_when_a_folder_is_read_only(key: str, small_disk: Path, tmp_path: Path) -> None:
    subprocess.run(["mount", "-o", "remount,ro", small_disk], check=True)
    asked = ["dataset=mnist", "dataset.mirror=/nowhere"] if key == "dataset.root" else []
    given = [f"outputs={tmp_path / 'outputs'}", *asked, f"{key}={small_disk / 'data'}"]
    status, _, err = finish([sys.executable, "-m", "pipeline", *TINY, *given])
    assert status == 2, err
    line = one_error(err)
    assert "ead-only" in line or "cannot be written" in line
    note("read-only from the start", key, "nothing", line)


# --- files that lie


class Trap:
    """Runs a command when it is unpickled without a guard."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.system, (f"touch {self.marker}",)


def cut_off(path: Path, marker: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flip(path: Path, marker: Path) -> None:
    content = bytearray(path.read_bytes())
    for place in range(100, len(content), max(1, len(content) // 50)):
        content[place] ^= 0xFF
    path.write_bytes(content)


def trap_torch(path: Path, marker: Path) -> None:
    torch.save({"model": Trap(marker), "epochs_done": 1}, path)


def trap_pickle(path: Path, marker: Path) -> None:
    path.write_bytes(pickle.dumps(Trap(marker)))


def another_model(path: Path, marker: Path) -> None:
    torch.save({"epochs_done": 1, "fc.weight": torch.zeros(3)}, path)


LIES = [cut_off, flip, trap_torch, trap_pickle, another_model]
FEW_LIES = LIES if ALL else [trap_torch, another_model]


def refused(arguments: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> str:
    """The one line with which the command, run in this process, refuses."""
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")
    monkeypatch.setattr(sys, "argv", ["pipeline", *arguments])
    with pytest.raises(SystemExit) as ended:
        composition.main()
    err = capsys.readouterr().err
    assert ended.value.code == 2, err
    return one_error(err)


# ResNet18's fuse reads the checkpoint of train, and nothing else.
FLOAT = [*SMALL, "tracking=off", "stages=[train,fuse]"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from pipeline.run.runner import run

    outputs = tmp_path_factory.mktemp("trained") / "outputs"
    run(compose_request([*FLOAT, f"outputs={outputs}"]))
    return outputs


@pytest.fixture
def copied(trained: Path, outputs: Path) -> Path:
    import shutil

    shutil.copytree(trained / "artifacts", outputs / "artifacts")
    return outputs


@pytest.mark.parametrize("lie", FEW_LIES, ids=lambda one: one.__name__)
def test_checkpoint_is_never_executed_when_its_manifest_was_made_to_fit_it(
    lie: Callable[[Path, Path], None],
    copied: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Whoever can write into the store can write manifests too."""
    (folder,) = (copied / "artifacts").glob("train-*")
    marker, model = tmp_path / "code-ran", folder / "model.pt"
    lie(model, marker)
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["files"]["model.pt"] = sha256(model)
    (folder / "manifest.json").write_text(json.dumps(manifest))
    if lie is flip:
        pytest.skip("flipped numbers are numbers: without the hash they cannot be told from others")
    line = refused([*FLOAT, f"outputs={copied}"], capsys, monkeypatch)
    assert not marker.exists()
    assert str(model) in line
    assert "cannot be read" in line or "not a checkpoint of this model" in line
    note(f"store: {lie.__name__}, manifest fits", "fuse", "nothing", line)


@pytest.mark.parametrize("lie", FEW_LIES, ids=lambda one: one.__name__)
def test_training_starts_again_when_the_checkpoint_under_way_is_a_lie(
    lie: Callable[[Path, Path], None], copied: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from pipeline.run.runner import run

    (folder,) = (copied / "artifacts").glob("train-*")
    digest, marker = sha256(folder / "model.pt"), tmp_path / "code-ran"
    partial = folder.with_name(f"{folder.name}.partial")
    folder.rename(partial)
    (partial / "manifest.json").unlink()
    (partial / "model.pt").rename(partial / PROGRESS_FILE)
    lie(partial / PROGRESS_FILE, marker)
    run(compose_request([*FLOAT, f"outputs={copied}"]))
    err = capsys.readouterr().err
    assert not marker.exists()
    assert err.count(f"{PROGRESS_FILE} is damaged") == 1
    assert "training starts again" in err
    assert sha256(folder / "model.pt") == digest
    (line,) = (text for text in err.splitlines() if "is damaged" in text)
    note(f"progress.pt: {lie.__name__}", "train", "the epochs done", line)


@pytest.mark.skipif(not ALL, reason="make test-operations; test_bad_input.py has the most of them")
@pytest.mark.parametrize("lie", [cut_off, trap_torch, trap_pickle, another_model], ids=lambda one: one.__name__)
def test_weights_are_never_executed_when_they_are_a_lie(
    lie: Callable[[Path, Path], None],
    trained: Path,
    tmp_path: Path,
    outputs: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    weights, marker = tmp_path / "weights.pt", tmp_path / "code-ran"
    (model,) = (trained / "artifacts").glob("train-*/model.pt")
    weights.write_bytes(model.read_bytes())
    lie(weights, marker)
    line = refused([*FLOAT, f"outputs={outputs}", f"model.weights={weights}"], capsys, monkeypatch)
    assert not marker.exists()
    assert f"model.weights={weights}" in line
    note(f"model.weights: {lie.__name__}", "(start)", "nothing", line)


# --- YAML

DAMAGED = {"no YAML": (b"a: [1", "allowed: YAML"), "no UTF-8": (b"a: \xff\xfe", "UnicodeDecodeError")}


@pytest.mark.parametrize("damage", DAMAGED)
def test_experiment_is_refused_in_one_line_when_it_cannot_be_read(
    damage: str, tmp_path: Path, outputs: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    content, fragment = DAMAGED[damage]
    conf = tmp_path / "conf"
    shutil.copytree(composition.CONFIG_FOLDER, conf)
    (conf / "experiment" / "mine.yaml").write_bytes(content)
    monkeypatch.setattr(composition, "CONFIG_FOLDER", conf)
    assert fragment in refused(["+experiment=mine", f"outputs={outputs}"], capsys, monkeypatch)
    assert not outputs.exists()


# --- losses


@pytest.mark.parametrize(("value", "where"), [("nan", "loss"), ("inf", "loss"), ("nan", "last step")])
def test_last_good_checkpoint_is_kept_when_a_later_epoch_has_no_finite_numbers(
    value: str, where: str, tmp_path: Path
) -> None:
    from tests.test_training import fit, settings

    chosen = settings(schedule="constant")
    expected, _ = fit(tmp_path / "undisturbed", chosen)

    def spoil(model: nn.Module, epochs_done: float) -> None:
        if where == "loss" and epochs_done >= 2.0:
            next(model.parameters()).data.fill_(float(value))

    def spoil_last(optimizer: Any, *_: Any) -> None:
        steps["done"] += 1
        if steps["done"] == steps["last"]:
            optimizer.param_groups[0]["params"][0].data.fill_(float(value))

    steps = {"done": 0, "last": -1}
    folder = tmp_path / "spoilt"
    with pytest.MonkeyPatch.context() as patch:
        if where == "last step":  # of the third epoch: its loss was seen before
            make = training.optimization.make_optimizer

            def made(model: nn.Module, given: Any) -> Any:
                optimizer = make(model, given)
                optimizer.register_step_post_hook(spoil_last)
                return optimizer

            patch.setattr(training.optimization, "make_optimizer", made)
            counted = training.count_batches

            def counting(*given: Any, **named: Any) -> int:
                count = counted(*given, **named)
                if named.get("training"):
                    steps["last"] = 3 * count
                return count

            patch.setattr(training, "count_batches", counting)
        with pytest.raises(UserError, match=r"epoch 3, step \d+: train.learning_rate=") as told:
            fit(folder, chosen, before_step=spoil)
    state = torch.load(folder / PROGRESS_FILE, weights_only=True)
    assert state["epochs_done"] == 2
    assert all(value.isfinite().all() for value in state["model"].values())
    resumed, _ = fit(folder, chosen)
    assert all(
        torch.equal(one, other)
        for one, other in zip(resumed.state_dict().values(), expected.state_dict().values(), strict=True)
    )
    note(f"{value} in the {where} of epoch 3", "train", "that epoch", str(told.value))


def test_run_ends_in_one_line_when_its_learning_rate_makes_it_diverge(
    outputs: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    wild = ["train.learning_rate=100", "train.optimizer=sgd", "train.schedule=constant", "train.epochs=3"]
    line = refused([*FLOAT, f"outputs={outputs}", *wild, "train.batch_size=20"], capsys, monkeypatch)
    assert "is not finite" in line or "the loss is" in line
    assert "train.learning_rate=100 is likely too high" in line
    note("train.learning_rate=100", "train", "nothing that was good", line)


# --- the clock


def test_durations_are_not_negative_and_the_run_finishes_when_the_clock_jumps_back(
    outputs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pipeline.run.runner import run

    real, calls = time.time, [0]

    def jumping() -> float:
        calls[0] += 1
        return real() - 86_400 * (calls[0] // 4)  # a day back at every fourth look

    monkeypatch.setattr(time, "time", jumping)
    outcome = run(compose_request([*SMALL, "stages=[train,fuse]", f"outputs={outputs}"]))
    assert calls[0] > 4
    assert outcome.run_id is not None
    for path in (outputs / "artifacts").glob("*/manifest.json"):
        assert json.loads(path.read_text())["seconds"] >= 0
    assert [one.info.status for one in runs(outputs)] == ["FINISHED"]


def test_artifacts_are_found_when_their_files_are_from_the_future(
    copied: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from pipeline.run.runner import run

    for path in copied.rglob("*"):
        os.utime(path, (2**32, 2**32))
    run(compose_request([*FLOAT, f"outputs={copied}"]))
    assert capsys.readouterr().out.count(" cached ") == 2


# --- names

NAMES = {
    "spaces": "a b  c",
    "unicode": "é日本🙂",
    "dots": "x/../../y",
    "newline": "a\nb",
    "4000 characters": "z" * 4000,
    "deep": "/".join(["y"] * 1500),
    "quote": "it's",
}
KEYS = ["outputs", "dataset.root", "tracking.experiment", "tracking.run_name", "register.name"]


FEW = [("outputs", "newline"), ("outputs", "4000 characters"), ("register.name", "unicode")]


@pytest.mark.parametrize(("key", "name"), [(key, name) for key in KEYS for name in NAMES] if ALL else FEW)
def test_run_finishes_or_says_one_line_when_a_name_is_strange(
    key: str,
    name: str,
    tmp_path: Path,
    outputs: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    value = f"{tmp_path}/{NAMES[name]}" if key in ("outputs", "dataset.root") else NAMES[name]
    escaped = value.replace("\\", "\\\\").replace("'", "\\'")
    tracked = ["tracking=off"] if key in ("outputs", "dataset.root", "register.name") else []
    asked = [*BRIEF, *tracked, "stages=[train]", "model=mobilenet_v2", "model.stem=small", "backend=qnnpack"]
    arguments = [*asked, f"outputs={outputs}", f"{key}='{escaped}'"]
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")
    monkeypatch.setattr(sys, "argv", ["pipeline", *arguments])
    status: object = 0
    try:
        composition.main()
    except SystemExit as ended:
        status = ended.code
    lines = said(capsys.readouterr().err)
    assert (status, len(lines)) in ((0, 0), (2, 1))
    note(f"{key}: {name}", "train" if status == 0 else "(start)", "nothing", lines[0] if lines else "(works)")
