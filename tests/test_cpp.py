"""The C++ programs of examples/cpp: compiled, run, and held against what Python gives."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from pipeline.commands.composition import compose_request
from pipeline.datasets import catalogue
from pipeline.flows.catalogue import find as find_flow
from pipeline.host.files import PROJECT_ROOT
from pipeline.runtimes import exported, registry
from tests.tiny_exports import export, models

pytestmark = [
    pytest.mark.operations,  # compiling takes a minute
    pytest.mark.skipif(not (shutil.which("g++") and shutil.which("make")), reason="apt install g++ make"),
]


def build(name: str, folder: Path) -> Path:
    pytest.importorskip({"inductor": "torch"}.get(name, name))
    command = ["make", "-C", "examples/cpp", f"PYTHON={sys.executable}", f"BUILD={folder}", str(folder / name)]
    done = subprocess.run(command, cwd=PROJECT_ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return folder / name


def picture(folder: Path) -> Path:
    pixels = np.random.default_rng(0).integers(0, 256, (40, 50), dtype=np.uint8)
    Image.fromarray(pixels).save(folder / "picture.png")
    return folder / "picture.png"


def run(*command: object) -> np.ndarray:
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return np.array(done.stdout.split(), np.float32)


def test_openvino_program_gives_what_predict_gives_of_its_own_and_of_an_onnx_file(tmp_path: Path) -> None:
    program, int8 = build("openvino", tmp_path), models()["int8"]
    folder = export(int8, "openvino", tmp_path / "model")
    registry()["onnxruntime"].export(int8, torch.zeros(1, 1, 32, 32), folder)
    model = exported.load(folder / "model.xml")
    image = model.preprocessing.apply(picture(tmp_path))
    image.tofile(tmp_path / "image.bin")
    for file in ("model.xml", "model.onnx"):
        np.testing.assert_array_equal(run(program, folder / file, tmp_path / "image.bin"), model.outputs(image))
    (tmp_path / "image.bin").write_bytes(b"short")
    done = subprocess.run([program, folder / "model.xml", tmp_path / "image.bin"], capture_output=True, text=True)
    assert done.returncode == 1
    assert "image.bin: is not there, or not of the model's 4096 bytes" in done.stderr


def test_inductor_program_gives_what_predict_gives(tmp_path: Path) -> None:
    program = build("inductor", tmp_path)
    asked = ["model=own", "model.target=tests.export_networks:Residual", "backend=inductor"]
    config = compose_request(asked).config
    flow, info = find_flow(config.backend), catalogue.info(config.dataset)
    from pipeline import models as networks

    torch.manual_seed(0)
    prepared = flow.prepare_ptq(networks.build(config.model, info), config, info)
    flow.set_mode(prepared, training=False)
    with torch.no_grad():
        prepared(torch.randn(8, 1, 32, 32))
    folder = export(flow.convert(prepared, config), "inductor", tmp_path / "model")
    model = exported.load(folder)
    image = model.preprocessing.apply(picture(tmp_path))
    image.tofile(tmp_path / "image.bin")
    outputs = run(program, folder / "model.pt2", tmp_path / "image.bin", *image.shape)
    np.testing.assert_array_equal(outputs, model.outputs(image))
