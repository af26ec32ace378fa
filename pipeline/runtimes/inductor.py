"""Inductor, torch's own compiler: C++ kernels and oneDNN's int8 convolutions, compiled ahead of time (AOTInductor).

The package is for processors with the instructions of the one that made it, and runs with torch of the same version.
"""

from __future__ import annotations

import copy
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.runtimes.contract import Predictor, Runtime

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor, fx, nn

_FILE = "model.pt2"
_MOST_IMAGES = 65_536


def lacks_compiler() -> str | None:
    """What to install where no C++ compiler is found; CXX may name one."""
    from torch._inductor.cpp_builder import get_cpp_compiler
    from torch._inductor.exc import InvalidCxxCompiler

    try:
        get_cpp_compiler()
    except InvalidCxxCompiler:
        return "a C++ compiler, such as g++ (apt install g++); CXX names another"
    return None


def _export(model: nn.Module, example: Tensor, folder: Path) -> None:
    import torch

    if isinstance(model, torch.fx.GraphModule):
        model = _with_two_channels(model)
    batch = torch.export.Dim("batch", min=1, max=_MOST_IMAGES)
    # Without no_grad Inductor does not freeze: it computes int8 in float, four times as slowly, and says nothing.
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        # With one image, torch.export takes their number for fixed.
        captured = torch.export.export(
            model.eval(), (example.expand(2, -1, -1, -1).clone(),), dynamic_shapes=({0: batch},)
        )
        torch._inductor.aoti_compile_and_package(
            captured,
            package_path=str(folder / _FILE),
            # It would else write the number of threads of this process into the code.
            inductor_configs={"freezing": True, "cpp.dynamic_threads": True},
        )


def _with_two_channels(model: fx.GraphModule) -> fx.GraphModule:
    """The same network, in which an int8 convolution of one channel sees it twice, the second time with weights of 0.

    oneDNN's int8 convolutions give channels-last. Where the number of images is open and the input has one channel,
    Inductor expects contiguous outputs (pytorch#121400, for float convolutions), and AOTInductor reads them so.
    """
    import torch

    aten = torch.ops.aten
    quantized = torch.ops.quantized_decomposed
    dequantize = {quantized.dequantize_per_tensor.default, quantized.dequantize_per_channel.default}
    model = copy.deepcopy(model)
    graph = model.graph
    for node in [node for node in graph.nodes if node.target is aten.conv2d.default]:
        values, weight = node.args[:2]
        if not {values.target, weight.target} <= dequantize:
            continue
        path, _, name = weight.args[0].target.rpartition(".")
        owner = model.get_submodule(path)
        levels: Tensor = getattr(owner, name)
        groups = node.args[6] if len(node.args) > 6 else 1
        if levels.shape[1] != 1 or groups != 1:
            continue
        setattr(owner, name, torch.cat([levels, torch.zeros_like(levels)], 1))
        with graph.inserting_before(node):
            twice = graph.call_function(aten.expand.default, (values.args[0], [-1, 2, -1, -1]))
            dequantized = graph.call_function(values.target, (twice, *values.args[1:]))
        node.args = (dequantized, *node.args[1:])
    graph.eliminate_dead_code()
    model.recompile()
    return model


def _load(folder: Path, threads: int) -> Predictor:
    import torch

    package = torch._inductor.aoti_load_package(str(folder / _FILE))

    def predict(images: np.ndarray) -> np.ndarray:
        if torch.get_num_threads() != threads:  # global to the process, and others' too
            torch.set_num_threads(threads)
        with torch.inference_mode():
            outputs: np.ndarray = package(torch.from_numpy(images)).numpy()
        return outputs

    return predict


RUNTIME = Runtime(
    "inductor",
    ("torch",),
    None,
    _FILE,
    _export,
    _load,
    marker="v",
    flows=frozenset({"export"}),
    lacks=lacks_compiler,
)
