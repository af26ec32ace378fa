"""ONNX, run by onnxruntime: int8 as pairs of QuantizeLinear and DequantizeLinear (QDQ), fused to int8 kernels there."""

from __future__ import annotations

import contextlib
import copy
import json
import os
import sys
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.host.faults import fault
from pipeline.runtimes.contents import INT8, PROFILED_RUNS, Arithmetic, Contents, Operators, Weight, port, together
from pipeline.runtimes.contract import Predictor, Runtime

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor, fx, nn

FILE = "model.onnx"
_INPUT, _OUTPUT = "image", "logits"
_NAMES: dict[str, Any] = {"input_names": [_INPUT], "output_names": [_OUTPUT]}
# The oldest with QuantizeLinear by channel that every runtime here reads; the older exporter knows up to 20.
_OPSET = 17
# The oldest that the newer exporter writes without converting.
_CAPTURED_OPSET = 18
_MOST_IMAGES = 65_536
_CONVERSIONS = ("QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear", "Cast")
# What ends the name of a node's event in a profile.
_KERNEL = "_kernel_time"


def export_onnx(model: nn.Module, example: Tensor, path: Path) -> None:
    """Write a float or a converted model as ONNX, for batches of any size.

    By the older exporter, unless the model is a captured graph: torch.export, on which the newer one rests, cannot take
    a model that eager mode has converted, and the older one cannot take a captured graph in int8. What the older one
    cannot take, such as pooling to a size that does not divide the map, the newer one may.
    """
    import torch

    with warnings.catch_warnings(), torch.no_grad():
        if isinstance(model, torch.fx.GraphModule):
            _export_captured(_pooled_by_means(model), example, path)
            return
        warnings.filterwarnings("ignore", message="You are using the legacy TorchScript-based ONNX export")
        warnings.filterwarnings("ignore", message="The feature will be removed. Please remove usage of this function")
        try:
            with _silent_stdout():
                torch.onnx.export(
                    model.eval(),
                    (example,),
                    str(path),
                    dynamo=False,
                    opset_version=_OPSET,
                    dynamic_axes={_INPUT: {0: "batch"}, _OUTPUT: {0: "batch"}},
                    **_NAMES,
                )
        except torch.onnx.OnnxExporterError as error:
            try:
                _export_captured(model, example, path)
            except Exception as newer:
                if fault(newer):
                    raise
                raise error from newer


@contextlib.contextmanager
def _silent_stdout() -> Iterator[None]:
    """Without what is written to standard output, by C++ too.

    Torch's older exporter writes the whole graph that it cannot take. Its switch for that does not work: it tests the
    function that reads the switch, and not what the function answers.
    """
    sys.stdout.flush()
    kept = os.dup(1)
    try:
        with open(os.devnull, "w") as nothing:
            os.dup2(nothing.fileno(), 1)
        yield
    finally:
        sys.stdout.flush()
        os.dup2(kept, 1)
        os.close(kept)


def _export_captured(model: nn.Module, example: Tensor, path: Path) -> None:
    import torch

    warnings.filterwarnings("ignore", message=r"`isinstance\(treespec, LeafSpec\)` is deprecated")
    batch = torch.export.Dim("batch", min=1, max=_MOST_IMAGES)
    # With one image, torch.export takes their number for fixed.
    captured = torch.export.export(model.eval(), (example.expand(2, -1, -1, -1),), dynamic_shapes=({0: batch},))
    program = torch.onnx.export(captured, dynamo=True, opset_version=_CAPTURED_OPSET, verbose=False, **_NAMES)
    assert program is not None
    _pool_globally(program.model.graph)
    program.save(str(path), external_data=False)


def _pooled_by_means(model: fx.GraphModule) -> fx.GraphModule:
    """The same network, whose poolings to one pixel are means.

    An image of one channel may look channels-last by its strides. Torch then writes such a pooling as a mean and an
    `as_strided`, which moves nothing; but OpenVINO rounds a mean in int8 that is not quantized at once.
    """
    import torch

    model = copy.deepcopy(model)
    for node in model.graph.nodes:
        if node.target is torch.ops.aten.adaptive_avg_pool2d.default and list(node.args[1]) == [1, 1]:
            node.target, node.args = torch.ops.aten.mean.dim, (node.args[0], [2, 3], True)
    model.recompile()
    return model


def _pool_globally(graph: Any) -> None:
    """Write means over height and width, as torch's exporter has them, as the pooling that they are.

    onnxruntime has an int8 kernel for GlobalAveragePool, and none for ReduceMean.
    """
    for node in graph:
        if node.op_type != "ReduceMean" or len(node.inputs) < 2 or not node.attributes.get_int("keepdims", 1):
            continue
        values, axes = node.inputs
        rank, numbers = len(values.shape or ()), axes.const_value
        if rank == 4 and numbers is not None and sorted(axis % rank for axis in numbers.numpy().ravel()) == [2, 3]:
            node.op_type = "GlobalAveragePool"
            node.attributes.clear()
            node.resize_inputs(1)
            if not axes.uses():  # onnxruntime would tell of it each time that it loads the file
                graph.initializers.pop(axes.name, None)


def _export(model: nn.Module, example: Tensor, folder: Path) -> None:
    export_onnx(model, example, folder / FILE)


def _options(threads: int) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    # Idle threads that spin would take the processor from whatever runs in between.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return options


def _load(folder: Path, threads: int) -> Predictor:
    import onnxruntime

    session = onnxruntime.InferenceSession(folder / FILE, _options(threads), providers=["CPUExecutionProvider"])

    def predict(images: np.ndarray) -> np.ndarray:
        (logits,) = session.run([_OUTPUT], {_INPUT: images})
        return logits  # type: ignore[no-any-return]

    return predict


def _inspect(folder: Path, images: np.ndarray | None) -> Contents:
    import onnx

    graph = onnx.load(folder / FILE).graph
    stored = [*graph.initializer]
    for node in graph.node:
        if node.op_type == "Constant":
            stored += [attribute.t for attribute in node.attribute if attribute.name == "value"]
    weights = []
    for tensor in stored:
        dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type)
        size = onnx.numpy_helper.to_array(tensor).nbytes
        weights.append(Weight(tensor.name, tuple(tensor.dims), dtype.name, size))

    def in_words(value: onnx.ValueInfoProto) -> str:
        kind = value.type.tensor_type
        shape = [size.dim_param or size.dim_value for size in kind.shape.dim]
        return port(value.name, onnx.helper.tensor_dtype_to_np_dtype(kind.elem_type).name, shape)

    ports = in_words(graph.input[0]), in_words(graph.output[0])
    return Contents(*ports, weights, [] if images is None else _profile(folder / FILE, images))


def _profile(file: Path, images: np.ndarray) -> list[Operators]:
    """The operators of the graph as onnxruntime has fused it, which it names only where it counts their time."""
    import onnxruntime

    options = _options(1)
    options.enable_profiling = True
    with tempfile.TemporaryDirectory() as made:
        options.profile_file_prefix = str(Path(made) / "profile")
        session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
        for _ in range(PROFILED_RUNS):
            session.run(None, {_INPUT: images})
        events = json.loads(Path(session.end_profiling()).read_text())
    kinds: dict[str, tuple[str, Arithmetic]] = {}
    times: dict[str, list[float]] = {}
    for event in events:
        if event.get("cat") == "Node" and event["name"].endswith(_KERNEL):
            about = event["args"]
            index, kind = about["node_index"], about["op_name"]
            kinds[index] = kind, _arithmetic(kind, about["input_type_shape"])
            times.setdefault(index, []).append(event["dur"])
    return together((*kinds[index], taken) for index, taken in times.items())


def _arithmetic(kind: str, inputs: list[dict[str, Any]]) -> Arithmetic:
    if kind in _CONVERSIONS:
        return "conversion"
    return "int8" if inputs and next(iter(inputs[0])) in INT8 else "float"


RUNTIME = Runtime(
    "onnxruntime",
    ("onnx", "onnxruntime"),
    "onnxruntime",
    FILE,
    _export,
    _load,
    marker="D",
    loads_with=("onnxruntime",),
    inspect=_inspect,
)
