"""TorchScript: the traced graph with its constants folded in, run without the model's Python code."""

from __future__ import annotations

import json
import tempfile
import warnings
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.host.files import write_and_rename
from pipeline.runtimes.contents import PROFILED_RUNS, Arithmetic, Contents, Operators, ports_of, together
from pipeline.runtimes.contract import Predictor, Runtime

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor, nn

_FILE = "model.torchscript.pt"
# A file within the file: the quantized engine, for which torch packs the weights when it loads them.
_ENGINE = "quantized_engine"


def _export(model: nn.Module, example: Tensor, folder: Path) -> None:
    import torch

    with _without_deprecation(), torch.inference_mode(False), torch.no_grad():
        frozen = torch.jit.freeze(torch.jit.trace(model.eval(), example))
        # In memory first: writing to a full disk itself, torch ends the whole process.
        content = frozen.save_to_buffer(_extra_files={_ENGINE: torch.backends.quantized.engine})
    with write_and_rename(folder / _FILE) as temporary:
        temporary.write_bytes(content)


def _module(folder: Path) -> Any:
    import torch

    with _without_deprecation():
        torch.backends.quantized.engine = _engine(folder / _FILE)
        # As it is: torch.jit.optimize_for_inference makes fp32 twice as slow on small images, and int8 no faster.
        return torch.jit.load(str(folder / _FILE), map_location="cpu").eval()


def _load(folder: Path, threads: int) -> Predictor:
    from pipeline.runtimes.eager import predictor

    return predictor(_module(folder), threads)


def _inspect(folder: Path, images: np.ndarray | None) -> Contents:
    import torch

    from pipeline.runtimes.eager import weight

    module, weights = _module(folder), []
    for node in module.graph.findAllNodes("prim::Constant"):
        kept: Any = node.output().toIValue()
        held = kept.unpack() if hasattr(kept, "unpack") else [kept]  # packed with its bias
        weights += [weight(node.output().debugName(), one) for one in held if isinstance(one, torch.Tensor)]
    if images is None:
        return Contents("not told", "not told", weights, [])
    return Contents(*ports_of(images, _load(folder, 1)(images)), weights, _profile(module, images))


def _profile(module: Any, images: np.ndarray) -> list[Operators]:
    """The operators that the graph calls, without those that they call in turn."""
    import torch
    from torch.profiler import ProfilerActivity, profile

    tensor = torch.from_numpy(images)
    with torch.inference_mode(), tempfile.TemporaryDirectory() as made:
        for _ in range(3):  # it is compiled in the second
            module(tensor)
        with profile(activities=[ProfilerActivity.CPU], record_shapes=True) as taken:
            for _ in range(PROFILED_RUNS):
                module(tensor)
        trace = Path(made) / "trace.json"
        taken.export_chrome_trace(str(trace))
        events = [event for event in json.loads(trace.read_text())["traceEvents"] if event.get("cat") == "cpu_op"]
    nodes: list[tuple[str, Arithmetic, list[float]]] = []
    place, ends = 0, 0.0
    for event in sorted(events, key=lambda event: event["ts"]):
        if event["name"] == "forward":  # the graph, which calls the same operators in each run
            place = 0
        elif event["ts"] >= ends:
            if place == len(nodes):
                nodes.append((event["name"], _arithmetic(event["name"], event["args"].get("Input type", [])), []))
            nodes[place][2].append(event["dur"])
            place, ends = place + 1, event["ts"] + event["dur"]
    return together(nodes)


def _arithmetic(name: str, inputs: list[str]) -> Arithmetic:
    if name in ("aten::quantize_per_tensor", "aten::dequantize"):
        return "conversion"
    return "int8" if any(one.startswith(("c10::quint8", "c10::qint8")) for one in inputs) else "float"


def _engine(file: Path) -> str:
    """The engine that a file was made for."""
    with zipfile.ZipFile(file) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith(f"/extra/{_ENGINE}"))
        return archive.read(name).decode()


@contextmanager
def _without_deprecation() -> Iterator[None]:
    """Without the lines that recommend torch.export, which cannot take a converted model."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=r"`torch\.jit\.\w+` is (deprecated|not supported)")
        yield


RUNTIME = Runtime(
    "torchscript",
    ("torch",),
    None,
    _FILE,
    _export,
    _load,
    marker="s",
    flows=frozenset({"eager"}),
    inspect=_inspect,
)
