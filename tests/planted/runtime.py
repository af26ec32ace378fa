"""A runtime whose file is a trace of the network with another name's end, run by torch."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from pipeline.runtimes import Predictor, Runtime
from pipeline.runtimes.eager import predictor

_FILE = "model.traced"


def _export(model: nn.Module, example: torch.Tensor, folder: Path) -> None:
    with torch.no_grad():
        torch.jit.trace(model.eval(), example).save(str(folder / _FILE))


def _load(folder: Path, threads: int) -> Predictor:
    return predictor(torch.jit.load(str(folder / _FILE)), threads)


RUNTIME = Runtime("traced", ("torch",), None, _FILE, _export, _load, marker="X", flows=None)
PICKY = Runtime("picky", ("torch",), None, _FILE, _export, _load, flows=frozenset({"export"}))
NEEDY = Runtime("needy", ("PIL.Image", "tests.planted"), None, _FILE, _export, _load)
NAMESAKE = Runtime("torchscript", ("torch",), None, _FILE, _export, _load)
