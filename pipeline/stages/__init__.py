"""The stages: one file each, named as the stage, ending with its declaration `STAGE`.

Adding a stage is one such file and its name in `stages`.
"""

from __future__ import annotations

import functools
import importlib
import pkgutil

from pipeline.stage import Stage


@functools.cache
def registry() -> dict[str, Stage]:
    """Every declared stage by its name."""
    modules = (importlib.import_module(f"{__name__}.{found.name}") for found in pkgutil.iter_modules(__path__))
    return {module.STAGE.name: module.STAGE for module in modules}
