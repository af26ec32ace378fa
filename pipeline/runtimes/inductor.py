"""Inductor, torch's own compiler: C++ kernels and oneDNN's int8 convolutions, compiled ahead of time (AOTInductor).

The package is for processors with the instructions of the one that made it, and runs with torch of the same version.
"""

from __future__ import annotations

import copy
import json
import re
import warnings
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.runtimes.contents import Arithmetic, Contents, Operators, Weight, ports_of, together
from pipeline.runtimes.contract import Predictor, Runtime

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor, fx, nn

_FILE = "model.pt2"
_MOST_IMAGES = 65_536
# Of the code that Inductor has written, which lies in the package: a constant, the function that runs the network,
# what that calls, and the declaration of a kernel.
_CONSTANT = re.compile(
    r'constants_info_\[(\d+)\]\.name = "([^"]+)";.*?\[\1\]\.dtype = cached_torch_dtype_(\w+);'
    r".*?\[\1\]\.data_size = (\d+);.*?\[\1\]\.shape = \{([\d, ]*)\};",
    re.DOTALL,
)
_RUN = re.compile(r"void AOTInductorModel::run_impl\(.*?^\} // AOTInductorModel::run_impl", re.DOTALL | re.MULTILINE)
_CALL = re.compile(r"aoti_torch_cpu_(\w+)\(|(cpp_fused\w+)\(|proxy_executor_call_function\(proxy_executor, (\d+),")
_KERNEL = re.compile(r'extern "C"\s+void\s+(cpp_fused\w+)\(([^)]*)\)')


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
        _keep_apart(model)
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


def _keep_apart(model: fx.GraphModule) -> None:
    """Write a ReLU whose output is added to something as a clamp, in place.

    torchao's passes fuse the ReLU with the convolution before it, take the result for a bare convolution before an
    addition, and end in an AssertionError.
    """
    import torch

    aten = torch.ops.aten
    rectified, added = {aten.relu.default, aten.relu_.default}, {aten.add.Tensor, aten.add_.Tensor}
    for node in model.graph.nodes:
        if node.target in rectified and any(user.target in added for user in node.users):
            node.target, node.args = aten.clamp_min.default, (node.args[0], 0)
    model.recompile()


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


def _inspect(folder: Path, images: np.ndarray | None) -> Contents:
    with zipfile.ZipFile(folder / _FILE) as package:
        (name,) = (name for name in package.namelist() if name.endswith(".wrapper.cpp"))
        code = package.read(name).decode()
        others = name.removesuffix(".cpp") + ".json"  # the calls that go through torch's dispatcher
        called = json.loads(package.read(others)) if others in package.namelist() else {"nodes": []}
    weights = [
        Weight(name, tuple(int(size) for size in shape.split(",") if size.strip()), dtype, int(size))
        for _, name, dtype, size, shape in _CONSTANT.findall(code)
    ]
    ports = ("not told", "not told") if images is None else ports_of(images, _load(folder, 1)(images))
    unknown = ["what share of the time an operator takes: Inductor's compiled code does not tell"]
    targets = [node["node"]["target"] for node in called["nodes"]]
    return Contents(*ports, weights, _operators(code, targets), unknown)


def _operators(code: str, targets: list[str]) -> list[Operators]:
    kernels = dict(_KERNEL.findall(code))
    found = _RUN.search(code)
    nodes: list[tuple[str, Arithmetic, None]] = []
    for operator, kernel, target in _CALL.findall(found[0] if found else ""):
        if kernel:
            kinds = {"int8" in word for word in kernels[kernel].split(",") if "*" in word}
            # One that is fused takes and gives int8, and computes in float between.
            mixed = len(kinds) > 1 or "quantize" in kernel
            arithmetic: Arithmetic = "conversion" if mixed else "int8" if kinds == {True} else "float"
            nodes.append((kernel, arithmetic, None))
        else:
            name = operator or targets[int(target)]
            nodes.append((name, "int8" if name.startswith(("_q", "quantized::")) else "float", None))
    return together(nodes)


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
    inspect=_inspect,
)
