"""OpenVINO: its intermediate representation (IR), made from the ONNX file of the same model."""

from __future__ import annotations

import functools
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.runtimes.contents import PROFILED_RUNS, Arithmetic, Contents, Operators, Weight, port, together
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


def _compile(folder: Path, threads: int, **further: object) -> Any:
    settings = {
        "INFERENCE_NUM_THREADS": threads,
        "PERFORMANCE_HINT": "LATENCY",
        # On processors with bf16 it would else compute what is float in bf16, and compare unlike things.
        "INFERENCE_PRECISION_HINT": "f32",
    }
    return _core().compile_model(folder / _FILE, "CPU", settings | further)


def _load(folder: Path, threads: int) -> Predictor:
    compiled = _compile(folder, threads)

    def predict(images: np.ndarray) -> np.ndarray:
        return compiled(images)[0].copy()  # type: ignore[no-any-return]

    return predict


def _inspect(folder: Path, images: np.ndarray | None) -> Contents:
    model = _core().read_model(folder / _FILE)
    weights = []
    for node in model.get_ops():
        if node.get_type_name() == "Constant":
            dtype = node.get_output_element_type(0).to_dtype().name
            shape = tuple(node.get_output_shape(0))
            weights.append(Weight(node.get_friendly_name(), shape, dtype, node.get_byte_size()))

    def in_words(one: Any) -> str:
        return port(one.get_any_name(), one.get_element_type().to_dtype().name, one.get_partial_shape())

    ports = in_words(model.inputs[0]), in_words(model.outputs[0])
    return Contents(*ports, weights, [] if images is None else _profile(folder, images))


def _profile(folder: Path, images: np.ndarray) -> list[Operators]:
    request = _compile(folder, 1, PERF_COUNT=True).create_infer_request()
    kinds: dict[str, tuple[str, Arithmetic]] = {}
    times: dict[str, list[float]] = {}
    for _ in range(PROFILED_RUNS):
        request.infer([images])
        for node in request.profiling_info:
            if node.status == node.Status.EXECUTED:
                kinds[node.node_name] = node.node_type, _arithmetic(node.node_type, node.exec_type)
                times.setdefault(node.node_name, []).append(1e6 * node.real_time.total_seconds())
    return together((*kinds[name], taken) for name, taken in times.items())


def _arithmetic(kind: str, kernel: str) -> Arithmetic:
    """By the kernel's name, which ends with the type that it computes in, such as jit_avx512_I8."""
    if kind in ("FakeQuantize", "Convert"):
        return "conversion"
    return "int8" if kernel.endswith(("_I8", "_U8", "_i8", "_u8")) else "float"


RUNTIME = Runtime(
    "openvino",
    ("onnx", "openvino"),
    "openvino",
    _FILE,
    _export,
    _load,
    marker="^",
    loads_with=("openvino",),
    inspect=_inspect,
)
