"""Networks with random weights, whose speed is measured: speed does not depend on what they have learned."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from pipeline.datasets.spec import DatasetInfo
from pipeline.flows import catalogue as flows
from pipeline.settings.config import Config


@torch.no_grad()
def normalized(network: nn.Module, images: Tensor) -> nn.Module:
    """The network with the statistics of images in its BatchNorms, without which activations vanish with depth."""
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 1.0
    network.train()(images)
    return network.eval()


@torch.no_grad()
def quantized(network: nn.Module, batches: list[Tensor], config: Config, info: DatasetInfo) -> nn.Module:
    """The network in int8, after training, by `config`'s backend; calibrated on batches of images.

    Raises:
        UserError: when the backend needs a quantizable twin and the network has none.
    """
    flow = flows.find(config.backend)
    prepared = flow.prepare_ptq(network, config, info)
    with flow.fake_quantize_off(prepared):
        for images in batches:
            prepared(images)
    return flow.convert(prepared, config)
