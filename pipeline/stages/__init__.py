"""The stages: one file each, named as the stage, ending with its declaration `STAGE`.

Adding a stage is one such file and its name in `stages`.
"""

from __future__ import annotations

import functools

from pipeline.host.declared import modules_of
from pipeline.stages.contract import Stage


@functools.cache
def registry() -> dict[str, Stage]:
    """Every declared stage by its name."""
    return {module.STAGE.name: module.STAGE for module in modules_of(__name__) if hasattr(module, "STAGE")}
