"""What this machine's processor can do."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch


def has_vnni(
    capabilities: Mapping[str, Any] | None = None, instructions: Sequence[str] = ("avx512_vnni", "avx_vnni")
) -> bool:
    """Whether a processor (None: this one) has one of the instructions that add products of 8 bits in 32."""
    capabilities = torch.cpu.get_capabilities() if capabilities is None else capabilities
    return any(capabilities.get(name) for name in instructions)
