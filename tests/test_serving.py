"""A registered int8 model where nothing of this project is: another process, another environment, over HTTP."""

from __future__ import annotations

import importlib.metadata
import json
import os
import re
import signal
import socket
import subprocess
import sys
import sysconfig
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from packaging.requirements import Requirement

from pipeline import datasets, models, quantization
from pipeline.champion import Contender
from pipeline.composition import compose_request
from pipeline.config import TrackingConfig
from pipeline.runtimes import registry
from pipeline.shipping import RegisterConfig
from pipeline.tracking import RunRecord, open_run
from pipeline.tracking.models import ModelRecord, log_model, register
from tests.conftest import SMALL

pytest.importorskip("onnxruntime")

SIZE = 32


@dataclass(frozen=True)
class Shipped:
    """A registered model, the store it is in, and what its exported file gives for some images."""

    store: str
    uri: str
    images: np.ndarray
    outputs: np.ndarray


@pytest.fixture(scope="module")
def exports(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A real int8 network, calibrated but not trained, exported for onnxruntime and TorchScript."""
    quantization.silence_known_warnings()
    config = compose_request(SMALL).config
    torch.manual_seed(0)
    twin = models.build_twin(config.model, datasets.info(config.dataset))
    prepared = quantization.prepare_ptq(twin, config.backend, None)
    with torch.inference_mode():
        prepared(torch.randn(8, 1, SIZE, SIZE))
    int8 = quantization.convert(prepared, config.backend)
    folder = tmp_path_factory.mktemp("exports")
    for name in ("onnxruntime", "torchscript"):
        (folder / name).mkdir()
        registry()[name].export(int8, torch.zeros(1, 1, SIZE, SIZE), folder / name)
        datasets.preprocessing(config.dataset).write(folder / name)
    return folder


def ship(runtime: str, exports: Path, outputs: Path) -> Shipped:
    """Log and register the model of one runtime in a store of its own."""
    file = exports / runtime / registry()[runtime].file
    record = ModelRecord(runtime, file, 1, "fbgemm")
    with open_run(TrackingConfig(), outputs, RunRecord("test", {}, {}, "", ("digits", "0", "nowhere"))):
        contender = Contender(0.0, 1.0, True, "1 thread")
        done = register(RegisterConfig(f"net-{runtime}"), outputs, record, log_model(record), contender)
    assert done.verdict.wins
    images = np.random.default_rng(0).normal(size=(5, 1, SIZE, SIZE)).astype(np.float32)
    expected = registry()[runtime].load(file.parent, 1)(images)
    return Shipped(f"sqlite:///{outputs / 'mlflow.db'}", f"models:/net-{runtime}@champion", images, expected)


@pytest.fixture(scope="module", params=["onnxruntime", "torchscript"])
def shipped(request: pytest.FixtureRequest, exports: Path, tmp_path_factory: pytest.TempPathFactory) -> Shipped:
    return ship(request.param, exports, tmp_path_factory.mktemp("shipped") / "outputs")


def elsewhere(shipped: Shipped) -> dict[str, str]:
    """The variables of a process that knows the store and nothing of this project."""
    known = {"PATH": os.environ["PATH"], "HOME": os.environ.get("HOME", "/"), "OMP_NUM_THREADS": "1"}
    return {**known, "MLFLOW_TRACKING_URI": shipped.store}


def required(requirements: Path) -> set[str]:
    """The distributions that a requirements file asks for, and what those ask for."""
    found: set[str] = set()
    waiting = [line for line in requirements.read_text().splitlines() if line]
    while waiting:
        requirement = Requirement(waiting.pop())
        name = re.sub(r"[-_.]+", "-", requirement.name).lower()
        if name in found or (requirement.marker and not requirement.marker.evaluate({"extra": ""})):
            continue
        found.add(name)
        waiting += importlib.metadata.requires(name) or []
    return found


def make_environment(requirements: Path, folder: Path) -> Path:
    """A folder of packages that holds what a requirements file asks for, and nothing else."""
    folder.mkdir()
    for name in required(requirements):
        distribution = importlib.metadata.distribution(name)
        tops = {path.parts[0] for path in distribution.files or () if path.parts[0] not in ("..", "__pycache__")}
        for top in tops:
            link = folder / top
            if not link.exists():
                link.symlink_to(Path(str(distribution.locate_file(top))))
    return folder


def test_logged_model_gives_the_same_bits_in_an_environment_of_its_requirements(
    shipped: Shipped, tmp_path: Path
) -> None:
    """A process that finds the standard library and the packages of requirements.txt, and no others."""
    np.save(tmp_path / "images.npy", shipped.images)
    probe = (
        "import importlib.util, sys\n"
        "sys.path.append(sys.argv[1])\n"
        "assert importlib.util.find_spec('pipeline') is None\n"
        "import numpy\n"
        "import mlflow.pyfunc\n"
        "model = mlflow.pyfunc.load_model(sys.argv[2])\n"
        "outputs = model.predict(numpy.load('images.npy'))\n"
        "(logits,) = outputs.values() if isinstance(outputs, dict) else [outputs]\n"
        "numpy.save('outputs.npy', logits)\n"
        "print(*sorted({'torch', 'onnxruntime', 'onnx', 'pipeline'} & set(sys.modules)))\n"
    )
    from pipeline.tracking.registry import find_registered

    folder = find_registered(shipped.uri, TrackingConfig(uri=shipped.store), tmp_path)
    packages = make_environment(folder / "requirements.txt", tmp_path / "packages")
    command = [sys.executable, "-I", "-S", "-c", probe, str(packages), shipped.uri]
    done = subprocess.run(command, cwd=tmp_path, env=elsewhere(shipped), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["torch" if "torchscript" in shipped.uri else "onnxruntime"]
    np.testing.assert_array_equal(np.load(tmp_path / "outputs.npy"), shipped.outputs)
