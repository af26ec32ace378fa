"""OpenVINO: its intermediate representation (IR), made from the ONNX file of the same model."""

from __future__ import annotations

import functools
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.runtimes.contract import Predictor, Runtime
from pipeline.runtimes.onnx import export_onnx

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor, nn

_FILE = "model.xml"  # its weights are in model.bin


@functools.cache
def _core() -> Any:
    """The one Core of the process, which stays until its end.

    Each Core lays a stack for signal handlers over the one before, and its end takes away even the one that is in
    use: after two that did not end in reverse order, the next signal that Python handles is a segmentation fault.
    """
    import openvino

    return openvino.Core()


def _export(model: nn.Module, example: Tensor, folder: Path) -> None:
    import openvino

    with tempfile.TemporaryDirectory() as made:
        path = Path(made) / "model.onnx"
        export_onnx(model, example, path)
        # Not convert_model: it reports to its maker from a fork of this process, whose threads may then hang the fork.
        openvino.save_model(_core().read_model(path), folder / _FILE, compress_to_fp16=False)


def _load(folder: Path, threads: int) -> Predictor:
    compiled = _core().compile_model(
        folder / _FILE,
        "CPU",
        {
            "INFERENCE_NUM_THREADS": threads,
            "PERFORMANCE_HINT": "LATENCY",
            # On processors with bf16 it would else compute what is float in bf16, and compare unlike things.
            "INFERENCE_PRECISION_HINT": "f32",
        },
    )

    def predict(images: np.ndarray) -> np.ndarray:
        return compiled(images)[0].copy()  # type: ignore[no-any-return]

    return predict


RUNTIME = Runtime("openvino", ("onnx", "openvino"), "openvino", _FILE, _export, _load, marker="^")
