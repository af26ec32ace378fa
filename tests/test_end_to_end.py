"""The real thing, small: real MNIST from a mirror, the real command, and a sweep that shares its work."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest

from pipeline.host.files import PROJECT_ROOT
from tests import forked
from tests.conftest import SMALL
from tests.test_tracking import NINE, runs


@pytest.mark.operations
def test_mnist_experiment_reaches_int8_accuracy_when_given_a_sample(
    mnist_mirror: Path, outputs: Path, tmp_path: Path
) -> None:
    command = [sys.executable, "-m", "pipeline", "+experiment=resnet18_mnist", f"outputs={outputs}"]
    data = [f"dataset.mirror={mnist_mirror}", f"dataset.root={tmp_path / 'data'}"]
    few = ["dataset.max_train_samples=2000", "dataset.max_test_samples=500", "evaluate.repeats=20"]
    small = [*few, "train.epochs=3", "qat.epochs=1"]
    done = subprocess.run([*command, *data, *small], cwd=PROJECT_ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (found,) = runs(outputs)
    metrics = found.data.metrics
    assert metrics.keys() >= NINE
    assert metrics["int8/accuracy_pct"] >= 90
    assert metrics["accuracy_drop_pct"] <= 2
    # The fake-quantized model of the last epoch foretells what the converted one does.
    assert metrics["int8/accuracy_pct"] == pytest.approx(metrics["qat/val_accuracy_pct"], abs=4)
    assert metrics["compression"] == pytest.approx(3.96, abs=0.05)
    assert "int8" in done.stdout
    assert f"next:  mlflow ui --backend-store-uri sqlite:///{outputs / 'mlflow.db'} " in done.stdout
    assert "\n       python -m pipeline -m" in done.stdout


def test_sweep_trains_the_float_model_once_and_logs_every_job(outputs: Path) -> None:
    command = [sys.executable, "-m", "pipeline", "-m", *SMALL, f"outputs={outputs}"]
    done = forked.run([*command, "backend=fbgemm,qnnpack"], check=True)
    lines = [" ".join(line.split()[:2]) for line in done.stdout.splitlines()]
    assert lines.count("train done") == lines.count("fuse done") == 1
    assert lines.count("train cached") == 1
    assert lines.count("qat done") == lines.count("convert done") == 2
    assert lines.count("evaluate done") == 2
    found = [run for run in runs(outputs) if "mlflow.parentRunId" in run.data.tags]
    assert [run.info.status for run in found] == ["FINISHED"] * 2
    assert all(run.data.metrics.keys() >= NINE for run in found)
    assert {run.data.params["backend.name"] for run in found} == {"fbgemm", "qnnpack"}


def test_help_shows_groups_and_examples_without_importing_torch() -> None:
    probe = (
        "import sys; sys.argv = ['pipeline', '--help']\n"
        "from pipeline.commands.composition import main\n"
        "try:\n    main()\nfinally:\n"
        "    assert not {'torch', 'torchvision', 'mlflow'} & set(sys.modules), 'a heavy import'\n"
    )
    done = subprocess.run([sys.executable, "-c", probe], cwd=PROJECT_ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for words in (
        "backend: executorch, fbgemm, inductor, onednn, onnxruntime, openvino, qnnpack, x86",
        "+experiment=resnet18_mnist_224",
        "make ui",
    ):
        assert words in done.stdout


def test_cached_command_ends_in_seconds_and_says_cached_for_each_stage(finished_outputs: Path) -> None:
    command = [sys.executable, "-m", "pipeline", *SMALL, f"outputs={finished_outputs}", "tracking=off"]
    started = time.monotonic()
    done = subprocess.run(command, cwd=PROJECT_ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.count(" cached ") == 5
    # 'Seconds' with a wide margin for a busy machine: training alone would take longer.
    assert time.monotonic() - started < 60
