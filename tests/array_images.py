"""Images as stages get them, and a data set that is made of given arrays."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from pipeline.datasets import catalogue
from pipeline.datasets.spec import DatasetSpec, Part

# Of a made data set's images, so many are of the first class, and as many of the second.
EACH = 8


def all_pixels(part: Part) -> Tensor:
    """Every image of a part, prepared: uint8 (N, C, S, S)."""
    (pixels,) = part.batches([torch.arange(len(part))], torch.device("cpu"))
    return pixels


def declare(monkeypatch: pytest.MonkeyPatch, pixels: np.ndarray) -> None:
    """Let there be a data set `made`, both of whose parts are these images, uint8 (2 · EACH, C, H, W)."""

    def read(*_: object) -> Part:
        return Part(torch.from_numpy(pixels), torch.arange(2).repeat_interleave(EACH))

    made = DatasetSpec("made", lambda _: ("a", "b"), lambda _: None, read, lambda *_: "made", lambda _: "made here")
    monkeypatch.setattr(catalogue, "registry", lambda: {"made": made})
