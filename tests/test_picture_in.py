"""export.input=uint8: files that take pictures as decoders give them, and answer as those do that take floats."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from pipeline import runtimes
from pipeline.datasets.preprocessing import PREPROCESSING_FILE, Preprocessing
from pipeline.run import runner
from pipeline.run.request import Request
from tests.conftest import TINY, TRAINED
from tests.test_compilation import needs_compiler

for needed in ("onnx", "onnxruntime", "openvino"):
    pytest.importorskip(needed)

STAGES = "stages=[train,fuse,qat,convert,evaluate,export"
QUICK = [f"benchmark.{given}" for given in ("max_seconds=1", "min_repeats=3", "passes=2", "batch_sizes=[1,2]")]
# The captured graph as each runtime exports it; the others take their time, to compile among others.
ROUTES = [
    pytest.param(TINY, 3, ["torchscript", "onnxruntime", "openvino"], id="eager"),
    pytest.param([TINY[0], TINY[1], "backend=onnxruntime"], 1, ["onnxruntime"], id="export"),
    pytest.param([TINY[0], TINY[1], "backend=openvino"], 1, ["openvino"], id="openvino", marks=pytest.mark.operations),
    pytest.param([TINY[0], TINY[1], "backend=inductor"], 3, ["inductor"], id="inductor", marks=pytest.mark.operations),
    pytest.param(
        [TINY[0], TINY[1], "backend=executorch"], 3, ["executorch"], id="executorch", marks=pytest.mark.operations
    ),
]


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
    prepare = Preprocessing.read(floats / "int8" / names[0] / PREPROCESSING_FILE).model_input
    normalized = np.concatenate([prepare(one.transpose(2, 0, 1)) for one in given])
    for form in ("fp32", "int8"):
        for name in names:
            assert metrics[f"{name}/{form}/parity"] == 1
            assert metrics[f"{name}/{form}/latency_ms"] > 0
            load = runtimes.find(name).load
            expected = load(floats / form / name, 1)(normalized)
            assert expected.std() > 0
            # Of one that computes float otherwise beside other operations.
            tolerance = 1e-5 if form == "fp32" else 0
            np.testing.assert_allclose(load(pictures / form / name, 1)(given), expected, rtol=0, atol=tolerance)
