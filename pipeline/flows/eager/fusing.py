"""Fusing neighbouring modules in one, which a twin's `fuse_model` asks for."""

from __future__ import annotations

from collections.abc import Sequence

import torch.ao.quantization as ao
from torch import nn


def fuse_modules(module: nn.Module, groups: Sequence[Sequence[str]], is_qat: bool) -> None:
    """Fuse each group of `module`'s children (Conv+BN, Conv+BN+ReLU, …) in place.

    With `is_qat` (the module in training mode) the BatchNorm is kept, trainable, beside its
    convolution; without (evaluation mode) it is folded into the weights for good.
    """
    in_mode = ao.fuse_modules_qat if is_qat else ao.fuse_modules
    in_mode(module, [list(group) for group in groups], inplace=True)
