"""Small ONNX models, made where a test needs an exported one without a training."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from pipeline.datasets.preprocessing import Preprocessing


def write_brightness_model(folder: Path, size: int = 8, channels: int = 1, takes_pictures: bool = False) -> Path:
    """A model whose classes tell where an image is brightest, `left` or `right`, exported with its preprocessing.

    Args:
        takes_pictures: it takes uint8 (N, S, S, C), and normalizes them.
    """
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    folder.mkdir(parents=True, exist_ok=True)
    half = np.repeat([1.0, 0.0], size // 2)
    weight = np.stack([np.tile(side, (channels, size, 1)).ravel() for side in (half, 1 - half)], axis=1)
    before, kind, shape = [], TensorProto.FLOAT, [channels, size, size]
    if takes_pictures:
        kind, shape = TensorProto.UINT8, [size, size, channels]
        before = [
            helper.make_node("Cast", ["image"], ["levels"], to=TensorProto.FLOAT),
            helper.make_node("Transpose", ["levels"], ["ordered"], perm=[0, 3, 1, 2]),
            helper.make_node("Div", ["ordered", "white"], ["scaled"]),
            helper.make_node("Sub", ["scaled", "mean"], ["centred"]),
            helper.make_node("Div", ["centred", "std"], ["normalized"]),
        ]
    numbers = {"white": 255, "mean": 0.5, "std": 0.25} if takes_pictures else {}
    graph = helper.make_graph(
        [
            *before,
            helper.make_node("Flatten", ["normalized" if takes_pictures else "image"], ["flat"]),
            helper.make_node("MatMul", ["flat", "weight"], ["logits"]),
        ],
        "brightness",
        [helper.make_tensor_value_info("image", kind, ["batch", *shape])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 2])],
        [
            numpy_helper.from_array((weight / weight.sum()).astype(np.float32), "weight"),
            *(numpy_helper.from_array(np.float32(number), name) for name, number in numbers.items()),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.save(model, folder / "model.onnx")
    preprocessing = Preprocessing(size, channels, (0.5,) * channels, (0.25,) * channels, ("left", "right"))
    (preprocessing.for_pictures() if takes_pictures else preprocessing).write(folder)
    return folder
