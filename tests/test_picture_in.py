"""export.input=uint8: files that take pictures as decoders give them, and answer as those do that take floats."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from pipeline import runtimes
from pipeline.datasets.preprocessing import PREPROCESSING_FILE, Preprocessing
from pipeline.flows.export.capture import capture
from pipeline.run import runner
from pipeline.run.request import Request
from pipeline.runtimes.picture_in import taking_pictures
from tests.conftest import TINY, TRAINED
from tests.test_compilation import needs_compiler
from tests.tiny import Tiny

for needed in ("onnx", "onnxruntime", "openvino"):
    pytest.importorskip(needed)

STAGES = "stages=[train,fuse,qat,convert,evaluate,export"
QUICK = [f"benchmark.{given}" for given in ("max_seconds=1", "min_repeats=3", "passes=2", "batch_sizes=[1,2]")]
# The captured graph as each runtime exports it; the others take their time, to compile among others.
ROUTES = [
    pytest.param(TINY, 3, ["torchscript", "onnxruntime", "openvino"], id="eager"),
    pytest.param([TINY[0], TINY[1], "backend=onnxruntime"], 1, ["onnxruntime"], id="export"),
    pytest.param([TINY[0], TINY[1], "backend=openvino"], 1, ["openvino"], id="openvino"),
    pytest.param([TINY[0], TINY[1], "backend=inductor"], 3, ["inductor"], id="inductor"),
    pytest.param([TINY[0], TINY[1], "backend=executorch"], 3, ["executorch"], id="executorch"),
]


def normalized(pictures: np.ndarray, preprocessing: Preprocessing) -> np.ndarray:
    pixels = np.ascontiguousarray(pictures.transpose(0, 3, 1, 2))
    return np.concatenate([preprocessing.model_input(one) for one in pixels])


@pytest.mark.parametrize("channels", [1, 3])
def test_network_sees_the_same_bits_when_it_takes_pictures(channels: int, tmp_path: Path) -> None:
    mean, std = (0.306, 0.4, 0.5)[:channels], (0.377, 0.2, 0.3)[:channels]
    pictures = np.random.default_rng(0).integers(0, 256, (3, 16, 16, channels), np.uint8)
    images = normalized(pictures, Preprocessing(16, channels, mean, std, ()))
    torch.manual_seed(0)
    network = Tiny(in_channels=channels, num_classes=4).eval()
    captured = capture(network, torch.from_numpy(images))
    with torch.no_grad():
        expected = network(torch.from_numpy(images))
        for model in (network, captured):
            same = taking_pictures(model, 16, mean, std)
            assert isinstance(same, torch.fx.GraphModule) == (model is captured)
            assert torch.equal(same(torch.from_numpy(pictures)), model(torch.from_numpy(images)))
    for name in ("torchscript", "onnxruntime", "openvino"):
        folder = tmp_path / name
        folder.mkdir()
        runtime = runtimes.find(name)
        runtime.export(taking_pictures(network, 16, mean, std), torch.from_numpy(pictures[:1]), folder)
        np.testing.assert_allclose(runtime.load(folder, 1)(pictures), expected, rtol=0, atol=1e-5)


@pytest.mark.operations  # a training each, and many exports
@pytest.mark.parametrize(("network", "channels", "names"), ROUTES)
def test_files_answer_pictures_as_they_answer_floats_when_input_is_uint8(
    network: list[str], channels: int, names: list[str], outputs: Path, small_request: Callable[..., Request]
) -> None:
    if names == ["inductor"]:
        needs_compiler()
    if names == ["executorch"]:
        pytest.importorskip("executorch", reason="pip install -e '.[executorch]'")
    mean, std = [0.306, 0.4, 0.5][:channels], [0.377, 0.2, 0.3][:channels]
    asked = [*network, *TRAINED, *QUICK, "tracking=off", f"runtime.names=[eager,{','.join(names)}]"]
    asked += [f"dataset.mean={mean}", f"dataset.std={std}"]
    for given in (f"{STAGES}]", "export.input=float32"), (f"{STAGES},benchmark]", "export.input=uint8"):
        metrics = runner.run(small_request(*asked, *given)).metrics
    floats, pictures = sorted((outputs / "artifacts").glob("export-*/"), key=lambda path: path.stat().st_mtime)
    content = json.loads((pictures / "int8" / names[0] / PREPROCESSING_FILE).read_text())
    assert (content["layout"], content["dtype"]) == ("NHWC", "uint8")
    given = np.random.default_rng(0).integers(0, 256, (3, 32, 32, channels), np.uint8)
    images = normalized(given, Preprocessing.read(floats / "int8" / names[0] / PREPROCESSING_FILE))
    for form in ("fp32", "int8"):
        for name in names:
            assert metrics[f"{name}/{form}/parity"] == 1
            assert metrics[f"{name}/{form}/latency_ms"] > 0
            load = runtimes.find(name).load
            expected = load(floats / form / name, 1)(images)
            assert expected.std() > 0
            # Of one that computes float otherwise beside other operations.
            tolerance = 1e-5 if form == "fp32" else 0
            np.testing.assert_allclose(load(pictures / form / name, 1)(given), expected, rtol=0, atol=tolerance)
