"""ExecuTorch, for phones and small devices: a program (.pte) whose operators XNNPACK computes as far as it can."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.host import terminal
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


RUNTIME = Runtime(
    "executorch",
    ("executorch",),
    "executorch",
    _FILE,
    _export,
    _load,
    marker="p",
    flows=frozenset({"export"}),
)
