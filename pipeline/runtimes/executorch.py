"""ExecuTorch, for phones and small devices: a program (.pte) whose operators XNNPACK computes as far as it can."""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.runtimes.contents import Arithmetic, Contents, Weight, ports_of, together
from pipeline.runtimes.contract import Predictor, Runtime

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor, nn

_FILE = "model.pte"
# Below this share of delegated operators a line warns.
_LOW_PCT = 80.0
# A program plans its memory for the most that it may be given at once; more are given in turns.
_MOST_IMAGES = 64
# They compute nothing.
_BOOKKEEPING = ("getitem", "sym_size")


def _export(model: nn.Module, example: Tensor, folder: Path) -> dict[str, float]:
    import torch

    from pipeline.host import terminal

    with terminal.quietly(), torch.no_grad():
        import executorch.kernels.quantized  # noqa: F401 (kernels of what XNNPACK leaves in int8)
        from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
        from executorch.devtools.backend_debug import get_delegation_info
        from executorch.exir import to_edge_transform_and_lower

        batch = torch.export.Dim("batch", min=1, max=_MOST_IMAGES)
        # With one image, torch.export takes their number for fixed.
        images = example.expand(2, -1, -1, -1).clone()
        captured = torch.export.export(model.eval(), (images,), dynamic_shapes=({0: batch},))
        lowered = to_edge_transform_and_lower(captured, partitioner=[XnnpackPartitioner()])
        counts = get_delegation_info(lowered.exported_program().graph_module).delegation_by_operator
        content = lowered.to_executorch().buffer
    (folder / _FILE).write_bytes(content)
    counted = {name: count for name, count in sorted(counts.items()) if name not in _BOOKKEEPING}
    left = {name: count.non_delegated for name, count in counted.items() if count.non_delegated}
    delegated = sum(count.delegated for count in counted.values())
    share = 100 * delegated / max(1, delegated + sum(left.values()))
    kept = ", ".join(f"{count} {name}" for name, count in left.items()) or "none"
    line = f"executorch: XNNPACK computes {share:.1f} % of the operators; left to plain kernels: {kept}"
    if share < _LOW_PCT:
        terminal.warn(f"{line}; that is slow: name such blocks in backend.float_modules, or take another network")
    else:
        terminal.say(f"  {line}")
    return {"delegated_pct": share}


def _load(folder: Path, threads: int) -> Predictor:
    import torch

    from pipeline.host import terminal

    with terminal.quietly():
        import executorch.kernels.quantized  # noqa: F401
        from executorch.extension.pybindings import portable_lib
        from executorch.runtime import Runtime as Interpreter

    # The pool of the process, which a loaded program keeps a pointer to: not to be changed while one runs.
    if portable_lib._threadpool_get_thread_count() != threads:
        portable_lib._unsafe_reset_threadpool(threads)
    method = Interpreter.get().load_program(folder / _FILE).load_method("forward")
    assert method is not None
    # What its memory is planned for, which ExecuTorch may make less than was asked for.
    most = int(method.metadata.input_tensor_meta(0).sizes()[0])

    def predict(images: np.ndarray) -> np.ndarray:
        made = [method.execute([some.contiguous()])[0].clone() for some in torch.from_numpy(images).split(most)]
        outputs: np.ndarray = torch.cat(made).numpy()
        return outputs

    return predict


def _inspect(folder: Path, images: np.ndarray | None) -> Contents:
    """XNNPACK's graphs lie in the program as flatbuffers; ExecuTorch's private functions read them."""
    from pipeline.host import terminal

    with terminal.quietly():
        from executorch.exir._serialize._program import deserialize_pte_binary
        from executorch.exir.schema import DelegateCall, KernelCall
        from executorch.exir.schema import Tensor as Value

        program = deserialize_pte_binary((folder / _FILE).read_bytes()).program
        (plan,) = (one for one in program.execution_plan if one.name == "forward")
        weights: list[Weight] = []
        nodes: list[tuple[str, Arithmetic, None]] = []
        for value in (one.val for one in plan.values):
            if isinstance(value, Value) and value.data_buffer_idx:
                size = len(program.constant_buffer[value.data_buffer_idx].storage)
                weights.append(Weight("", tuple(value.sizes), value.scalar_type.name.lower(), size))
        for call in (one.instr_args for chain in plan.chains for one in chain.instructions):
            if isinstance(call, KernelCall):
                name = plan.operators[call.op_index].name
                nodes.append((name, "conversion" if "quantize" in name else "float", None))
            elif isinstance(call, DelegateCall):
                blob = program.backend_delegate_data[plan.delegates[call.delegate_index].processed.index].data
                graph = _graph(blob)
                weights += _weights(graph)
                nodes += _nodes(graph)
    ports = ("not told", "not told") if images is None else ports_of(images, _load(folder, 1)(images))
    unknown = ["what share of the time an operator takes: the library from pip does not count it"]
    return Contents(*ports, weights, together(nodes), unknown)


def _graph(blob: bytes) -> dict[str, Any]:
    from executorch.backends.xnnpack.serialization.xnnpack_graph_serialize import XNNHeader, _get_schema_bytes
    from executorch.exir._serialize._flatbuffer import _flatc_decompile

    header = XNNHeader.from_bytes(blob[: XNNHeader.EXPECTED_LENGTH])
    with tempfile.TemporaryDirectory() as made:
        schema, binary = Path(made) / "graph.fbs", Path(made) / "graph.bin"
        schema.write_bytes(_get_schema_bytes())
        binary.write_bytes(blob[header.flatbuffer_offset :][: header.flatbuffer_size])
        _flatc_decompile(made, str(schema), str(binary))
        text = (Path(made) / "graph.json").read_text()
    # The bounds of what is not clipped, which JSON has no word for.
    graph: dict[str, Any] = json.loads(re.sub(r": [-+]?(inf|nan)\b", ": null", text))
    return graph


def _tensors(graph: dict[str, Any]) -> Iterator[dict[str, Any]]:
    for value in (one["xvalue_union"] for one in graph["xvalues"]):
        yield value.get("tensor_value", value)


def _dtype(tensor: dict[str, Any]) -> str:
    """XNNPACK's name of a type as numpy has it: qint8 is of a tensor, qcint8 of each channel, quint8 unsigned."""
    name = tensor["datatype"].removeprefix("xnn_datatype_")
    return re.sub("^qc?u?int", "int", name).replace("fp", "float")


def _weights(graph: dict[str, Any]) -> list[Weight]:
    constants = graph["constant_data"]
    return [
        Weight("", tuple(one["dims"]), _dtype(one), constants[one["constant_buffer_idx"]]["size"])
        for one in _tensors(graph)
        if one["constant_buffer_idx"]
    ]


def _nodes(graph: dict[str, Any]) -> Iterator[tuple[str, Arithmetic, None]]:
    dtypes = {one["id_out"]: _dtype(one) for one in _tensors(graph)}
    for node in graph["xnodes"]:
        name, about = node["xnode_union_type"], node["xnode_union"]
        computed: Arithmetic = "int8" if dtypes.get(about.get("output_id")) == "int8" else "float"
        yield name, "conversion" if name == "XNNConvert" else computed, None


RUNTIME = Runtime(
    "executorch",
    ("executorch",),
    "executorch",
    _FILE,
    _export,
    _load,
    marker="p",
    flows=frozenset({"export"}),
    inspect=_inspect,
)
