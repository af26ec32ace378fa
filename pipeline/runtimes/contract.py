"""What every runtime offers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from pipeline.host.declared import is_import_path
from pipeline.runtimes.contents import Contents

if TYPE_CHECKING:  # a program that predicts with onnxruntime does not import torch
    from torch import Tensor, nn

# Images as the exported model takes them (`export.input`), to the network's outputs, float32 (N, …); any N: float32
# (N, C, H, W), normalized, or uint8 (N, H, W, C).
Predictor = Callable[[np.ndarray], np.ndarray]


@dataclass(frozen=True)
class Runtime:
    """A way to run a model outside of training.

    Attributes:
        name: as in `runtime.names`, in metrics, tables and plots.
        modules: what must be importable.
        loads_with: what of it is enough to load a file and to predict; None: all.
        extra: of this project's optional dependencies, the one that brings them.
        file: the file that `export` writes and `load` reads, beside which it may put others.
        export: writes a model (on the CPU, in evaluation mode) for an example, float32 (1, C, H, W) or uint8
            (1, H, W, C), into a folder; what it returns, numbers by name, is reported beside the file's size.
        load: gives the predictor of what is in a folder, with so many threads.
        marker: of its points in plots, as matplotlib names it.
        flows: the flows of this project whose int8 models it can take; None: of any. Those of a flow of the user's own
            are tried: export and parity tell.
        lacks: what else exporting needs that is not here, in words; None: nothing.
        inspect: says what is in the file of a folder, and, given images as `load`'s predictor takes them, what runs in
            int8 for how long, on one thread; None: it cannot be told.
    """

    name: str
    modules: tuple[str, ...]
    extra: str | None
    file: str
    export: Callable[[nn.Module, Tensor, Path], Mapping[str, float] | None]
    load: Callable[[Path, int], Predictor]
    marker: str = "P"
    flows: frozenset[str] | None = None
    loads_with: tuple[str, ...] | None = None
    lacks: Callable[[], str | None] = lambda: None
    inspect: Callable[[Path, np.ndarray | None], Contents] | None = None

    def takes(self, flow: str) -> bool:
        """Whether it may take the models of a flow, by the name that `backend.flow` has."""
        return self.flows is None or flow in self.flows or is_import_path(flow)
