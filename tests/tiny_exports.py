"""A tiny network of the digits, not trained, as files of runtimes."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from pipeline import models as networks
from pipeline.commands.composition import compose_request
from pipeline.datasets import catalogue
from pipeline.flows import catalogue as flows
from pipeline.flows import eager as quantization
from pipeline.flows.eager import twins
from pipeline.runtimes import registry
from tests.conftest import TINY

SIZE = 32


def models(*overrides: str) -> dict[str, nn.Module]:
    """The network in float, and in int8, by the eager flow."""
    config = compose_request([*TINY, *overrides]).config
    torch.manual_seed(0)
    twin = twins.build(config.model, catalogue.info(config.dataset)).eval()
    made = {"fp32": twin}
    prepared = quantization.prepare_ptq(
        twins.build(config.model, catalogue.info(config.dataset)), config.backend, "min_max"
    )
    with torch.inference_mode():
        prepared(torch.randn(8, 1, SIZE, SIZE))
    return made | {"int8": quantization.convert(prepared, config.backend)}


def captured_int8(backend: str) -> nn.Module:
    """The network in int8 by the export flow."""
    config = compose_request([*TINY[:2], f"backend={backend}"]).config
    info, flow = catalogue.info(config.dataset), flows.find(config.backend)
    torch.manual_seed(0)
    prepared = flow.prepare_ptq(networks.build(config.model, info).eval(), config, info)
    with torch.no_grad():
        prepared(torch.randn(8, 1, SIZE, SIZE))
    return flow.convert(prepared, config)


def export(model: nn.Module, runtime: str, folder: Path) -> Path:
    folder.mkdir(parents=True)
    registry()[runtime].export(model, torch.zeros(1, 1, SIZE, SIZE), folder)
    catalogue.preprocessing(compose_request([]).config.dataset).write(folder)
    return folder
