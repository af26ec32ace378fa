"""Small ONNX models, made where a test needs an exported one without a training."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from pipeline.datasets.preprocessing import Preprocessing


def write_brightness_model(folder: Path, size: int = 8, channels: int = 1) -> Path:
    """A model whose classes tell where an image is brightest, `left` or `right`, exported with its preprocessing."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    folder.mkdir(parents=True, exist_ok=True)
    half = np.repeat([1.0, 0.0], size // 2)
    weight = np.stack([np.tile(side, (channels, size, 1)).ravel() for side in (half, 1 - half)], axis=1)
    graph = helper.make_graph(
        [
            helper.make_node("Flatten", ["image"], ["flat"]),
            helper.make_node("MatMul", ["flat", "weight"], ["logits"]),
        ],
        "brightness",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["batch", channels, size, size])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 2])],
        [numpy_helper.from_array((weight / weight.sum()).astype(np.float32), "weight")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.save(model, folder / "model.onnx")
    Preprocessing(size, channels, (0.5,) * channels, (0.25,) * channels, ("left", "right")).write(folder)
    return folder
