"""TorchScript: the traced graph with its constants folded in, run without the model's Python code."""

from __future__ import annotations

import warnings
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.host.files import write_and_rename
from pipeline.runtimes.contract import Predictor, Runtime

if TYPE_CHECKING:
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


def _load(folder: Path, threads: int) -> Predictor:
    import torch

    from pipeline.runtimes.eager import predictor

    with _without_deprecation():
        torch.backends.quantized.engine = _engine(folder / _FILE)
        # As it is: torch.jit.optimize_for_inference makes fp32 twice as slow on small images, and int8 no faster.
        module = torch.jit.load(str(folder / _FILE), map_location="cpu").eval()
    return predictor(module, threads)


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


RUNTIME = Runtime("torchscript", ("torch",), None, _FILE, _export, _load, marker="s", flows=frozenset({"eager"}))
