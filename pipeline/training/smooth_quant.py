"""SmoothQuant: what is hard to quantize in activations is moved into the weights, which have a scale a channel.

Xiao et al. 2022, "SmoothQuant: Accurate and Efficient Post-Training Quantization for Large Language Models", equations
3 and 4. Behind a LayerNorm a few channels may be many times as large as the others, and one scale for all of them
leaves the others few levels. Each channel is divided by a factor in the LayerNorm, and multiplied by it in the linear
layers that take it. The float network stays the same, up to rounding.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from pipeline.host import terminal
from pipeline.settings.config import Config
from pipeline.training.calibration import show_calibration_images
from pipeline.training.context import Context


@torch.no_grad()
def smooth(network: nn.Module, strength: float, config: Config, context: Context) -> None:
    """Smooth a float network in place, by the calibration images, and say what was smoothed.

    Args:
        strength: how much moves into the weights: from 0, nothing, to 1, all of it.
    """
    flow = context.flow
    prepared = flow.prepare_ptq(copy.deepcopy(network), config, context.info)
    flow.set_mode(prepared.to(context.device), training=False)
    groups, layers = flow.smoothable(prepared), flow.layers(prepared)
    largest: dict[str, Tensor] = {}

    def look(norm: str) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        def hook(layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            seen = inputs[0].abs().flatten(0, -2).amax(0).cpu()
            largest[norm] = torch.maximum(largest[norm], seen) if norm in largest else seen

        return hook

    # Which of its layers is looked at is no matter: all of them take the same.
    handles = [layers[names[0]].register_forward_pre_hook(look(norm)) for norm, names in groups.items()]
    try:
        with flow.observers_off(prepared):
            show_calibration_images(prepared, config, context, "smooth")
    finally:
        for handle in handles:
            handle.remove()
    for norm, seen in largest.items():
        _move(network.get_submodule(norm), [network.get_submodule(name) for name in groups[norm]], seen, strength)
    count = sum(len(groups[norm]) for norm in largest)
    smoothed = f"{count} linear layers behind LayerNorms ({len(largest)}) smoothed"
    told = smoothed if count else "nothing to smooth, no LayerNorm goes to quantized layers alone"
    terminal.say(f"  ptq.smooth_quant={strength:g}: {told}")


def _move(norm: Any, layers: list[Any], largest: Tensor, strength: float) -> None:
    """Divide each channel (C) of a LayerNorm by its factor, and multiply the layers' columns by it."""
    of_weights = torch.stack([layer.weight.abs().amax(0) for layer in layers]).amax(0)
    factor = largest**strength / of_weights ** (1 - strength)
    factor[(largest == 0) | (of_weights == 0)] = 1.0  # a channel that is always 0, or that nobody reads
    norm.weight /= factor
    if norm.bias is not None:
        norm.bias /= factor
    for layer in layers:
        layer.weight *= factor
