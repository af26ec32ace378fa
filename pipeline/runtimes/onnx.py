"""ONNX, run by onnxruntime: int8 as pairs of QuantizeLinear and DequantizeLinear (QDQ), fused to int8 kernels there."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.runtimes.contract import Predictor, Runtime

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor, nn

FILE = "model.onnx"
_INPUT, _OUTPUT = "image", "logits"
# The oldest with QuantizeLinear by channel that every runtime here reads; the older exporter knows up to 20.
_OPSET = 17
# The oldest that the newer exporter writes without converting.
_CAPTURED_OPSET = 18
_MOST_IMAGES = 65_536


def export_onnx(model: nn.Module, example: Tensor, path: Path) -> None:
    """Write a float or a converted model as ONNX, for batches of any size.

    By the older exporter, unless the model is a captured graph: torch.export, on which the newer one rests, cannot take
    a model that eager mode has converted, and the older one cannot take a captured graph in int8.
    """
    import torch

    common: dict[str, Any] = {"input_names": [_INPUT], "output_names": [_OUTPUT]}
    with warnings.catch_warnings(), torch.no_grad():
        if isinstance(model, torch.fx.GraphModule):
            warnings.filterwarnings("ignore", message=r"`isinstance\(treespec, LeafSpec\)` is deprecated")
            batch = torch.export.Dim("batch", min=1, max=_MOST_IMAGES)
            # With one image, torch.export takes their number for fixed.
            captured = torch.export.export(model.eval(), (example.expand(2, -1, -1, -1),), dynamic_shapes=({0: batch},))
            program = torch.onnx.export(captured, dynamo=True, opset_version=_CAPTURED_OPSET, verbose=False, **common)
            assert program is not None
            _pool_globally(program.model.graph)
            program.save(str(path), external_data=False)
            return
        warnings.filterwarnings("ignore", message="You are using the legacy TorchScript-based ONNX export")
        warnings.filterwarnings("ignore", message="The feature will be removed. Please remove usage of this function")
        torch.onnx.export(
            model.eval(),
            (example,),
            str(path),
            dynamo=False,
            opset_version=_OPSET,
            dynamic_axes={_INPUT: {0: "batch"}, _OUTPUT: {0: "batch"}},
            **common,
        )


def _pool_globally(graph: Any) -> None:
    """Write means over height and width, as torch's exporter has them, as the pooling that they are.

    onnxruntime has an int8 kernel for GlobalAveragePool, and none for ReduceMean.
    """
    for node in graph:
        if node.op_type != "ReduceMean" or len(node.inputs) < 2 or not node.attributes.get_int("keepdims", 1):
            continue
        values, axes = node.inputs[0], node.inputs[1].const_value
        rank = len(values.shape or ())
        if rank == 4 and axes is not None and sorted(axis % rank for axis in axes.numpy().ravel()) == [2, 3]:
            node.op_type = "GlobalAveragePool"
            node.attributes.clear()
            node.resize_inputs(1)


def _export(model: nn.Module, example: Tensor, folder: Path) -> None:
    export_onnx(model, example, folder / FILE)


def _load(folder: Path, threads: int) -> Predictor:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    # Idle threads that spin would take the processor from whatever runs in between.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    session = onnxruntime.InferenceSession(folder / FILE, options, providers=["CPUExecutionProvider"])

    def predict(images: np.ndarray) -> np.ndarray:
        (logits,) = session.run([_OUTPUT], {_INPUT: images})
        return logits  # type: ignore[no-any-return]

    return predict


RUNTIME = Runtime("onnxruntime", ("onnx", "onnxruntime"), "onnxruntime", FILE, _export, _load, marker="D")
