"""The runtimes that an exported model runs on (a stand-in until branch `runtimes` is merged)."""

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.errors import UserError, suggestion

Predictor = Callable[[np.ndarray], np.ndarray]


@dataclass(frozen=True)
class Runtime:
    name: str
    modules: tuple[str, ...]
    extra: str | None
    file: str
    export: Callable[[Any, Any, Path], None]
    load: Callable[[Path, int], Predictor]


def _load_onnx(folder: Path, threads: int) -> Predictor:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(folder / "model.onnx", options, providers=["CPUExecutionProvider"])
    (name,) = (each.name for each in session.get_inputs())
    return lambda images: session.run(None, {name: images})[0]


def _load_torchscript(folder: Path, threads: int) -> Predictor:
    import torch

    module = torch.jit.load(str(folder / "model.torchscript.pt"), map_location="cpu").eval()

    def predict(images: np.ndarray) -> np.ndarray:
        with torch.inference_mode():
            return module(torch.from_numpy(images)).numpy()

    return predict


def _export_onnx(module: Any, example: Any, folder: Path) -> None:
    import torch

    axes = {"image": {0: "batch"}, "logits": {0: "batch"}}
    torch.onnx.export(
        module,
        (example,),
        str(folder / "model.onnx"),
        dynamo=False,
        opset_version=17,
        input_names=["image"],
        output_names=["logits"],
        dynamic_axes=axes,
    )


def _export_torchscript(module: Any, example: Any, folder: Path) -> None:
    import torch

    with torch.inference_mode():
        torch.jit.freeze(torch.jit.trace(module, example)).save(str(folder / "model.torchscript.pt"))


@functools.cache
def registry() -> dict[str, Runtime]:
    def no_export(*_: Any) -> None:
        raise NotImplementedError

    runtimes = [
        Runtime("torchscript", ("torch",), None, "model.torchscript.pt", _export_torchscript, _load_torchscript),
        Runtime("onnxruntime", ("onnx", "onnxruntime"), "onnxruntime", "model.onnx", _export_onnx, _load_onnx),
        Runtime("openvino", ("openvino",), "openvino", "model.xml", no_export, _load_onnx),
    ]
    return {runtime.name: runtime for runtime in runtimes}


def check_runtimes(names: Sequence[str]) -> None:
    for name in names:
        if name not in registry():
            raise UserError(f"runtime.names: {suggestion(name, registry())}")
        if any(importlib.util.find_spec(module) is None for module in registry()[name].modules):
            raise UserError(f"{name} is not installed")
