"""Dropout over the batch of all processes: together they draw the mask that one process would."""

from __future__ import annotations

import torch.distributed as dist
import torch.nn.functional as functional
from torch import Tensor, nn

from pipeline.host.world import World


def drop_out_over_all(model: nn.Module) -> None:
    """Let every dropout of `model` take its part of the mask that all processes, seeded alike, draw for the batch."""
    for module in model.modules():
        if type(module) is nn.Dropout:
            # The module as it is, with another forward: whoever converts the model knows it as what it is.
            module.__class__ = _DropoutOverAll


class _DropoutOverAll(nn.Dropout):
    def forward(self, input: Tensor) -> Tensor:
        if not self.training:
            return super().forward(input)
        world = World(dist.get_rank(), dist.get_world_size())
        count = len(input) * world.size
        # What dropout makes of ones is its mask, scaled: each image's part of it depends on the size of the batch.
        mask = functional.dropout(input.new_ones((count, *input.shape[1:])), self.p)
        return input * mask[world.share(count)]
