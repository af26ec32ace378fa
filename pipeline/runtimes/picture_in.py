"""Pictures in: a model that takes images as decoders give them, and normalizes them itself, for every runtime."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor, nn


def taking_pictures(model: nn.Module, size: int, mean: Sequence[float], std: Sequence[float]) -> nn.Module:
    """The same model (of float32 (N, C, S, S), normalized) for uint8 (N, S, S, C), S being `size`.

    It does what `Preprocessing.model_input` does, operation by operation: one multiplication and one addition instead
    would save next to nothing, and round values that lie between two int8 levels otherwise.
    """
    import torch

    channels = len(mean)

    class Normalization(torch.nn.Module):
        mean: Tensor
        std: Tensor

        def __init__(self) -> None:
            super().__init__()
            # For a whole row: onnxruntime computes with one number a channel, three at a time, far more slowly.
            self.register_buffer("mean", torch.tensor(mean, dtype=torch.float32).repeat(size))
            self.register_buffer("std", torch.tensor(std, dtype=torch.float32).repeat(size))

        def forward(self, pictures: Tensor) -> Tensor:
            rows = pictures.reshape(-1, size, size * channels).float()
            images = ((rows / 255 - self.mean) / self.std).view(-1, size, size, channels)
            # In the order of its axes, as the float network gets it: by another one convolutions round otherwise.
            return images.permute(0, 3, 1, 2).clone(memory_format=torch.contiguous_format)

    if not isinstance(model, torch.fx.GraphModule):
        return torch.nn.Sequential(Normalization(), model)
    # Runtimes export a captured graph in their own ways, so it stays one.
    model = copy.deepcopy(model)
    model.add_submodule("normalization", Normalization())
    (images,) = (node for node in model.graph.nodes if node.op == "placeholder")
    with model.graph.inserting_after(images):
        normalized = model.graph.call_module("normalization", (images,))
    images.replace_all_uses_with(normalized, delete_user_cb=lambda user: user is not normalized)
    model.recompile()
    return model
