"""How near the runtimes' own resizing comes to Pillow's, by which images are prepared: why a file takes one size.

    python -m benchmarks.resizing

The middle squares of scikit-learn's two photographs, in uint8, bilinear with antialiasing: onnxruntime's `Resize` and
OpenVINO's `RESIZE_BILINEAR_PILLOW`. Prints the pixels that differ, and by how many of 255 levels.
"""

from __future__ import annotations

import numpy as np
import onnxruntime
import openvino
from onnx import TensorProto, helper
from openvino import opset13
from openvino.preprocess import PrePostProcessor, ResizeAlgorithm
from PIL import Image, ImageOps
from sklearn.datasets import load_sample_images


def main() -> None:
    """Print a row for each pair of sizes."""
    photos = [Image.fromarray(photo) for photo in load_sample_images().images]
    for side, size in ((427, 224), (427, 96), (96, 32), (32, 64)):
        squares = [np.asarray(ImageOps.fit(photo, (side, side), Image.Resampling.BICUBIC)) for photo in photos]
        wanted = np.stack([Image.fromarray(one).resize((size, size), Image.Resampling.BILINEAR) for one in squares])
        for name, resize in (("onnxruntime", _onnxruntime), ("openvino", _openvino)):
            apart = np.abs(np.stack([resize(one, size) for one in squares]).astype(int) - wanted)
            share = 100 * (apart > 0).mean()
            print(f"{side} to {size} px, {name}: {share:.3f} % of the numbers differ, by {apart.max()} levels at most")


def _onnxruntime(image: np.ndarray, size: int) -> np.ndarray:
    node = helper.make_node("Resize", ["image", "", "", "sizes"], ["resized"], mode="linear", antialias=1)
    sizes = helper.make_tensor("sizes", TensorProto.INT64, [4], [1, 3, size, size])
    given = helper.make_tensor_value_info("image", TensorProto.UINT8, [1, 3, *image.shape[:2]])
    made = helper.make_tensor_value_info("resized", TensorProto.UINT8, [1, 3, size, size])
    graph = helper.make_graph([node], "resize", [given], [made], [sizes])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 19)], ir_version=9)
    session = onnxruntime.InferenceSession(model.SerializeToString())
    (resized,) = session.run(None, {"image": image.transpose(2, 0, 1)[None]})
    return resized[0].transpose(1, 2, 0)


def _openvino(image: np.ndarray, size: int) -> np.ndarray:
    given = opset13.parameter([1, size, size, 3], openvino.Type.f32)
    before = PrePostProcessor(openvino.Model([opset13.relu(given)], [given]))
    before.input().tensor().set_element_type(openvino.Type.u8).set_shape([1, *image.shape])
    before.input().tensor().set_layout(openvino.Layout("NHWC"))
    before.input().model().set_layout(openvino.Layout("NHWC"))
    steps = before.input().preprocess()
    steps.resize(ResizeAlgorithm.RESIZE_BILINEAR_PILLOW).convert_element_type(openvino.Type.f32)
    return np.rint(openvino.compile_model(before.build(), "CPU")(image[None])[0][0])


if __name__ == "__main__":
    main()
