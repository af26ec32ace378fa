"""Bias correction: what rounding the weights shifts the outputs by, on average, is taken off the biases.

Nagel et al. 2019, "Data-Free Quantization Through Weight Equalization and Bias Correction", section 4.2: the shift of a
layer's output channel is the error of its weights times the mean of its input. The means are those of calibration
images, in the float model. It costs a second pass over them, and matters most for few weights a channel, as in
depthwise convolutions, and for one scale for all channels.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from pipeline.flows.contract import Flow
from pipeline.settings.config import Config
from pipeline.training.calibration import show_calibration_images
from pipeline.training.context import Context


@torch.no_grad()
def correct_biases(model: nn.Module, config: Config, context: Context) -> None:
    """Correct, in place, the bias of each quantized layer of a model of `prepare_simulation` that is calibrated."""
    sums: dict[str, Tensor] = {}
    counts: dict[str, int] = {}

    def add_inputs(name: str) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        def hook(layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            channels = inputs[0].movedim(1, -1) if _is_convolution(layer) else inputs[0]
            rows = channels.flatten(0, -2).double()
            sums[name] = sums.get(name, torch.zeros((), dtype=torch.float64)) + rows.sum(0).cpu()
            counts[name] = counts.get(name, 0) + len(rows)

        return hook

    layers = context.flow.layers(model)
    handles = [layer.register_forward_pre_hook(add_inputs(name)) for name, layer in layers.items()]
    try:
        show_calibration_images(model, config, context, "correct biases")
    finally:
        for handle in handles:
            handle.remove()
    for name, layer in layers.items():
        if name in sums:
            _shift(layer, sums[name] / counts[name], context.flow)


def _is_convolution(layer: nn.Module) -> bool:
    weight: Tensor = layer.weight  # type: ignore[assignment]
    return weight.dim() > 2


def _shift(layer: nn.Module, mean: Tensor, flow: Flow) -> None:
    """Take the mean shift off the bias of a layer, whose inputs have this mean (channels)."""
    weight: Tensor = layer.weight  # type: ignore[assignment]
    error = (flow.quantized_weight(layer) - weight).double().cpu()
    by_channel = error.flatten(2).sum(2) if error.dim() > 2 else error  # (outputs, inputs of one group)
    groups = len(mean) // by_channel.shape[1]
    shift = (by_channel.unflatten(0, (groups, -1)) * mean.unflatten(0, (groups, 1, -1))).sum(-1).flatten()
    bias: Tensor | None = layer.bias  # type: ignore[assignment]
    if bias is None:
        layer.bias = nn.Parameter(-shift.to(weight))
    else:
        bias -= shift.to(bias)
