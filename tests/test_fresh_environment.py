"""A registered int8 model where nothing of this project is installed: another process, another environment."""

from __future__ import annotations

import importlib.metadata
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from packaging.requirements import Requirement
from PIL import Image

from pipeline.host.files import PROJECT_ROOT
from pipeline.settings.config import TrackingConfig
from pipeline.tracking.registry import find_registered
from tests.shipped_models import ship
from tests.tiny_exports import captured_int8, export, models

pytestmark = pytest.mark.operations

pytest.importorskip("onnxruntime")


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


@pytest.mark.parametrize(("name", "runtime"), [("onnxruntime", "onnxruntime"), ("torchscript", "torch")])
def test_logged_model_gives_the_same_bits_in_an_environment_of_its_requirements(
    name: str, runtime: str, tmp_path: Path
) -> None:
    """A process that finds the standard library and the packages of requirements.txt, and no others."""
    shipped = ship(name, tmp_path)
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
    folder = find_registered(shipped.uri, TrackingConfig(uri=shipped.store), tmp_path)
    packages = make_environment(folder / "requirements.txt", tmp_path / "packages")
    command = [sys.executable, "-I", "-S", "-c", probe, str(packages), shipped.uri]
    done = subprocess.run(command, cwd=tmp_path, env=shipped.elsewhere, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == [runtime]
    np.testing.assert_array_equal(np.load(tmp_path / "outputs.npy"), shipped.outputs)


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino", "executorch"])
def test_predict_answers_alike_in_an_environment_of_the_runtime_and_pillow(runtime: str, tmp_path: Path) -> None:
    """A process that finds the standard library, this project's code, and no packages but those of both."""
    pytest.importorskip(runtime)
    int8 = captured_int8(runtime) if runtime == "executorch" else models()["int8"]
    folder = export(int8, runtime, tmp_path / "model")
    pixels = np.random.default_rng(0).integers(0, 256, (40, 50), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "picture.png")
    brought = "\ntorch" if runtime == "executorch" else ""  # it is run by torch's tensors, and does not ask for it
    (tmp_path / "requirements.txt").write_text(f"{runtime}{brought}\npillow\n")
    packages = make_environment(tmp_path / "requirements.txt", tmp_path / "packages")
    arguments = ["--model", str(folder), str(tmp_path / "picture.png")]
    probe = "import sys\nsys.path += sys.argv[1:3]\nsys.argv[1:3] = []\nfrom pipeline.predict import main\nmain()\n"
    command = [sys.executable, "-I", "-S", "-c", probe, str(PROJECT_ROOT), str(packages), *arguments]
    alone = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert alone.returncode == 0, alone.stderr
    here = [sys.executable, "-m", "pipeline.predict", *arguments]
    assert alone.stdout == subprocess.run(here, cwd=PROJECT_ROOT, capture_output=True, text=True, check=True).stdout
    assert len(alone.stdout.splitlines()) == 4
