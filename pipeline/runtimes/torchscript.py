"""TorchScript: the traced graph with its constants folded in, run without the model's Python code."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.runtimes.contract import Predictor, Runtime

if TYPE_CHECKING:
    from torch import Tensor, nn

_FILE = "model.torchscript.pt"


def _export(model: nn.Module, example: Tensor, folder: Path) -> None:
    import torch

    with _without_deprecation(), torch.inference_mode(False), torch.no_grad():
        frozen = torch.jit.freeze(torch.jit.trace(model.eval(), example))
        frozen.save(str(folder / _FILE))


def _load(folder: Path, threads: int) -> Predictor:
    import torch

    from pipeline.runtimes.eager import predictor

    with _without_deprecation():
        # As it is: torch.jit.optimize_for_inference makes fp32 twice as slow on small images, and int8 no faster.
        module = torch.jit.load(str(folder / _FILE), map_location="cpu").eval()
    return predictor(module, threads)


@contextmanager
def _without_deprecation() -> Iterator[None]:
    """Without the lines that recommend torch.export, which cannot take a converted model."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=r"`torch\.jit\.\w+` is (deprecated|not supported)")
        yield


RUNTIME = Runtime("torchscript", ("torch",), None, _FILE, _export, _load)
