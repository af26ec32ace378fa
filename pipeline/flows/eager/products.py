"""Large int8 matrix products, by every kernel that torch has here: what this machine can do at most."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch

from pipeline.flows.eager.engines import supported_engines


def int8_products(side: int) -> dict[str, Callable[[], object]]:
    """Products of two matrices (side, side) of 8 bits, ready to run, by the engine whose kernel does it."""
    before = torch.backends.quantized.engine
    activations = torch.quantize_per_tensor(torch.rand(side, side), 1 / 127, 0, torch.quint8)
    weights = torch.quantize_per_tensor(torch.randn(side, side), 0.05, 0, torch.qint8)
    products: dict[str, Callable[[], object]] = {}
    try:
        for engine in supported_engines():
            torch.backends.quantized.engine = engine
            packed = torch.ops.quantized.linear_prepack(weights, None)
            products[engine] = partial(torch.ops.quantized.linear, activations, packed, 1.0, 0)
    finally:
        torch.backends.quantized.engine = before
    return products
