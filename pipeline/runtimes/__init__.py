"""The runtimes that a model can be shipped to, behind one small interface.

    eager.py         the model in this process, as it was trained or converted
    torchscript.py   traced and frozen
    onnx.py          ONNX (int8 in QDQ form), run by onnxruntime
    openvino.py      OpenVINO's IR, made from the ONNX file

Importing this imports none of them: each file imports its runtime where it uses it, so that a program which
predicts with one starts without the others.
"""

from __future__ import annotations

import functools
import importlib.metadata
import importlib.util
from collections.abc import Sequence

from pipeline.host.errors import UserError, suggestion
from pipeline.runtimes.contract import Predictor, Runtime
from pipeline.runtimes.onnx import RUNTIME as ONNXRUNTIME
from pipeline.runtimes.openvino import RUNTIME as OPENVINO
from pipeline.runtimes.torchscript import RUNTIME as TORCHSCRIPT

__all__ = ["EAGER", "Predictor", "Runtime", "check_runtimes", "exported_to", "registry", "versions"]

# Needs no file: the stages have the model itself.
EAGER = "eager"


@functools.cache
def registry() -> dict[str, Runtime]:
    """The runtimes that a model is exported for, by name."""
    return {runtime.name: runtime for runtime in (TORCHSCRIPT, ONNXRUNTIME, OPENVINO)}


def exported_to(names: Sequence[str]) -> list[Runtime]:
    """Those of `runtime.names` that need a file, each once."""
    return [registry()[name] for name in dict.fromkeys(names) if name != EAGER]


def versions(names: Sequence[str]) -> dict[str, str]:
    """The installed versions of what those need besides torch, by module: other versions have other kernels."""
    modules = {module for runtime in exported_to(names) for module in runtime.modules if module != "torch"}
    return {module: importlib.metadata.version(module) for module in sorted(modules)}


def check_runtimes(names: Sequence[str], stages: Sequence[str] = ()) -> None:
    """Refuse a runtime that does not exist or is not installed, and stages that would have nothing to do.

    Raises:
        UserError: for the first one, with the nearest name or the line that installs it.
    """
    for name in names:
        if name == EAGER:
            continue
        if name not in registry():
            raise UserError(f"runtime.names=[{','.join(names)}]: {name}: {suggestion(name, [EAGER, *registry()])}")
        runtime = registry()[name]
        missing = [module for module in runtime.modules if importlib.util.find_spec(module) is None]
        if missing:
            how = f"pip install -e '.[{runtime.extra}]'" if runtime.extra else f"pip install {' '.join(missing)}"
            raise UserError(f"runtime.names=[{','.join(names)}]: {name} is not installed here; {how} brings it")
    if "export" in stages and not exported_to(names):
        raise UserError(
            f"runtime.names=[{','.join(names)}]: nothing to export; allowed: runtime=all, or the stage export left out"
        )
