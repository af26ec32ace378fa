"""Size, and the threads that a measurement has."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

MEGABYTE = 1e6


@contextmanager
def threads(count: int | None = None) -> Iterator[None]:
    """Give torch `count` threads within the block, and those that it had back afterwards, whoever sets them within."""
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(count or before)
        yield
    finally:
        torch.set_num_threads(before)


def size_mb(model: nn.Module) -> float:
    """The size of the model's serialized `state_dict` in MB (10^6 bytes)."""
    buffer = io.BytesIO()
    torch.save(model.state_dict(), buffer)
    return buffer.getbuffer().nbytes / MEGABYTE
