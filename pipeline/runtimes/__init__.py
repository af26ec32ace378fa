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
from pipeline.runtimes import onnx, openvino, torchscript
from pipeline.runtimes.contract import Predictor, Runtime

__all__ = ["EAGER", "Predictor", "Runtime", "check_runtimes", "exported_to", "registry", "versions"]

# Needs no file: the stages have the model itself.
EAGER = "eager"


@functools.cache
def registry() -> dict[str, Runtime]:
    """The runtimes that a model is exported for, by name; the one that starts soonest first."""
    return {runtime.name: runtime for runtime in (onnx.RUNTIME, openvino.RUNTIME, torchscript.RUNTIME)}


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
    key = f"runtime.names=[{','.join(names)}]"
    for name in names:
        if name not in (EAGER, *registry()):
            raise UserError(f"{key}: {name}: {suggestion(name, [EAGER, *registry()])}")
    for runtime in exported_to(names):
        missing = [module for module in runtime.modules if importlib.util.find_spec(module) is None]
        if missing:
            how = f"pip install -e '.[{runtime.extra}]'" if runtime.extra else f"pip install {' '.join(missing)}"
            raise UserError(f"{key}: {runtime.name} is not installed here; {how} brings it")
    if "export" in stages and not exported_to(names):
        raise UserError(f"{key}: nothing to export; allowed: runtime=all, or the stage export left out")
