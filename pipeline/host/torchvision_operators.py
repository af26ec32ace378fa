"""Make `import torchvision` work beside a CPU build of torch when its compiled operators cannot load.

torchvision's registry wheel for x86-64 Linux is linked to CUDA. Beside a CPU build of torch its
operator library does not load, and the import then fails because it registers meta kernels for two
operators that nobody declared: `operator torchvision::nms does not exist`. Once their schemas are declared
the whole Python part (data sets, transforms, models) works; only calling the operators
themselves (for detection models) still fails. Import this module before torchvision.
"""

from __future__ import annotations

import torch

try:
    import torchvision  # noqa: F401
except RuntimeError as error:
    if "torchvision::nms does not exist" not in str(error):
        raise
    # The declarations live as long as this object does.
    LIBRARY = torch.library.Library("torchvision", "DEF")
    for name in ("nms", "qnms"):
        LIBRARY.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
