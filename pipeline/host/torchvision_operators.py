"""Make `import torchvision` work beside a CPU build of torch when its compiled operators cannot load.

torchvision's registry wheel for x86-64 Linux is linked to CUDA. Beside a CPU build of torch its
operator library does not load, and the import then fails because it registers meta kernels for two
operators that nobody declared: `operator torchvision::nms does not exist`. Declaring their schemas
first lets the whole Python part (data sets, transforms, models) work; only calling the operators
themselves (for detection models) still fails. Import this module before torchvision.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path

import torch

_SCHEMAS = {
    "nms": "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms": "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
}


def _compiled_operators_load() -> bool:
    """Whether torchvision's operator library loads here; loading it registers the operators."""
    spec = importlib.util.find_spec("torchvision")
    assert spec is not None, "torchvision is a dependency of this package"
    for library in Path(str(spec.origin)).parent.glob("_C*"):
        try:
            torch.ops.load_library(str(library))
        except OSError:
            return False
    return hasattr(torch.ops.torchvision, "nms")


def declare_missing() -> torch.library.Library | None:
    """Declare `nms` and `qnms` where no compiled library did; return what must stay referenced, or None."""
    if _compiled_operators_load():
        return None
    library = torch.library.Library("torchvision", "DEF")
    for name, schema in _SCHEMAS.items():
        if not hasattr(torch.ops.torchvision, name):
            library.define(schema)
    return library


# The declarations live as long as this object does.
LIBRARY = declare_missing()
