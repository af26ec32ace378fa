"""The runtimes that a model can be shipped to, behind one small interface.

    eager.py         the model in this process, as it was trained or converted
    torchscript.py   traced and frozen
    onnx.py          ONNX (int8 in QDQ form), run by onnxruntime
    openvino.py      OpenVINO's IR, made from the ONNX file
    inductor.py      compiled ahead of time by torch's own compiler (AOTInductor)
    executorch.py    for phones: ExecuTorch's program, computed by XNNPACK

A runtime is a file that ends with its declaration `RUNTIME`, found here by that, or the user's own by import path.
To find them every module of this room is imported, so each imports torch, and its runtime, where it uses it: a program
that predicts with one starts without the others.
"""

from __future__ import annotations

import functools
import importlib.metadata
import importlib.util
import itertools
from collections.abc import Sequence

from pipeline.host.declared import choose, declared_in, is_import_path
from pipeline.host.errors import UserError
from pipeline.host.files import how_to_install
from pipeline.runtimes.contract import Predictor, Runtime

__all__ = [
    "EAGER",
    "Predictor",
    "Runtime",
    "check_runtimes",
    "exported_to",
    "find",
    "modules_of",
    "registry",
    "versions",
]

# Needs no file: the stages have the model itself.
EAGER = "eager"


@functools.cache
def registry() -> dict[str, Runtime]:
    """The runtimes of this project that a model is exported for, by name; in the order of their files' names."""
    return {runtime.name: runtime for runtime in declared_in(__name__, "RUNTIME").values()}


def find(name: str, key: str = "runtime.names") -> Runtime:
    """The runtime, other than `EAGER`, that a name in the setting `key` stands for.

    Raises:
        UserError: when there is none, or the user's own has a name that it cannot have.
    """
    found: Runtime | None = choose(key, name, {EAGER: None, **registry()}, Runtime)
    if found is None:
        raise UserError(f"{key}={name}: has no file to load; allowed: {', '.join(registry())}")
    if is_import_path(name) and (found.name in (EAGER, *registry()) or not found.name.isidentifier()):
        taken = ", ".join((EAGER, *registry()))
        raise UserError(f"{key}={name}: is named '{found.name}'; allowed: a plain name other than {taken}")
    return found


def exported_to(names: Sequence[str]) -> list[Runtime]:
    """Those of `runtime.names` that need a file, each once."""
    return [find(name) for name in dict.fromkeys(names) if name != EAGER]


def modules_of(names: Sequence[str]) -> list[str]:
    """The modules that declare those."""
    ours = {runtime.name: f"{__name__}.{module}" for module, runtime in declared_in(__name__, "RUNTIME").items()}
    return [name.partition(":")[0] if is_import_path(name) else ours[name] for name in names if name != EAGER]


def versions(names: Sequence[str]) -> dict[str, str]:
    """The installed versions of what those need besides torch, by module: other versions have other kernels."""
    modules = {module for runtime in exported_to(names) for module in runtime.modules if module != "torch"}
    found = {module: _version(module.partition(".")[0]) for module in sorted(modules)}
    return {module: version for module, version in found.items() if version is not None}


def _version(package: str) -> str | None:
    """Of what a runtime of the user's own needs, the distribution may have another name, or there may be none."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        distributions = importlib.metadata.packages_distributions().get(package, ())
        return next(map(importlib.metadata.version, distributions), None)


def check_runtimes(
    names: Sequence[str],
    stages: Sequence[str] = (),
    flow: str | None = None,
    key: str | None = None,
    only_to_load: bool = False,
) -> None:
    """Refuse a runtime that does not exist or is not installed, and stages that would have nothing to do.

    Args:
        flow: as `backend.flow` names it; where given, a runtime that cannot take its models is refused too.
        key: what asks for them, and its value; None: `runtime.names`.
        only_to_load: what needs more than loading a file and predicting need not be installed.

    Raises:
        UserError: for the first one, with the nearest name or the line that installs it.
    """
    key = key or f"runtime.names=[{','.join(names)}]"
    asked = exported_to(names)
    for runtime in asked:
        needed = runtime.loads_with if only_to_load and runtime.loads_with else runtime.modules
        missing = [module for module in needed if importlib.util.find_spec(module.partition(".")[0]) is None]
        if missing:
            how = how_to_install(runtime.extra) if runtime.extra else f"pip install {' '.join(missing)}"
            raise UserError(f"{key}: {runtime.name} is not installed here; {how} brings it")
        if flow is not None and not runtime.takes(flow):
            able = ", ".join([EAGER, *(each.name for each in registry().values() if each.takes(flow))])
            raise UserError(f"{key}: {runtime.name} cannot take the models of backend.flow={flow}; allowed: {able}")
        if "export" in stages and (lacking := runtime.lacks()) is not None:
            raise UserError(f"{key}: exporting to {runtime.name} needs {lacking}")
    for first, second in itertools.combinations(asked, 2):
        if first.name == second.name:
            raise UserError(f"{key}: two runtimes are named '{first.name}'; allowed: names that differ")
    if "export" in stages and not asked:
        raise UserError(f"{key}: nothing to export; allowed: runtime=all, or the stage export left out")
