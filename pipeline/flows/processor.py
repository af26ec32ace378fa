"""What this machine's processor can do in int8."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch


def has_vnni(
    capabilities: Mapping[str, Any] | None = None, instructions: Sequence[str] = ("avx512_vnni", "avx_vnni")
) -> bool:
    """Whether a processor (None: this one) has one of the instructions that add products of 8 bits in 32."""
    capabilities = torch.cpu.get_capabilities() if capabilities is None else capabilities
    return any(capabilities.get(name) for name in instructions)


def supported_engines() -> list[str]:
    """The quantized engines that this build of torch has on this machine."""
    return [engine for engine in torch.backends.quantized.supported_engines if engine != "none"]


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
