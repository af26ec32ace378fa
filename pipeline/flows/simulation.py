"""Fake-quantize for training, whoever inserts it: an observer's ranges, and the arithmetic that int8 will have.

A fake-quantize module here is one of torch.ao or torchao: an observer `activation_post_process`, buffers `scale`,
`zero_point`, `observer_enabled` and `fake_quant_enabled`. Scale and zero point are those that the observer gives when
the model is converted, bit for bit.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from pipeline.flows.straight_through import FakeQuantize, rows_of_block
from pipeline.host.world import World

_SYMMETRIC = (torch.per_tensor_symmetric, torch.per_channel_symmetric)


def extremes(values: Tensor, per_channel: bool) -> tuple[Tensor, Tensor]:
    """Minimum and maximum: of each channel (C), or of all values ()."""
    values = values.detach()
    if not per_channel:
        return torch.aminmax(values)
    rows = values.flatten(1)
    both = [(block.amin(1), block.amax(1)) for block in rows.split(rows_of_block(rows))]
    return torch.cat([low for low, _ in both]), torch.cat([high for _, high in both])


def observe(fake_quantize: Any, low: Tensor, high: Tensor) -> None:
    """Let the observer within see values of these extremes (), or (C) by channel, and take its scale and zero point."""
    fake_quantize.activation_post_process(torch.stack((low, high), dim=-1))
    settle(fake_quantize)


def settle(fake_quantize: Any) -> None:
    """Take scale and zero point from what the observer within has seen."""
    found = fake_quantize.activation_post_process.calculate_qparams()
    for buffer, value in zip((fake_quantize.scale, fake_quantize.zero_point), found, strict=True):
        buffer.resize_(value.shape).copy_(value)


@contextmanager
def switched_off(fake_quantizes: Iterable[Any], switch: str) -> Iterator[None]:
    """Have `observer_enabled` or `fake_quant_enabled` off within the block, and as it was behind it."""
    switches = [getattr(module, switch) for module in fake_quantizes]
    before = [each.clone() for each in switches]
    for each in switches:
        each.zero_()
    try:
        yield
    finally:
        for each, value in zip(switches, before, strict=True):
            each.copy_(value)


def range_of(fake_quantize: Any, scale: Tensor, zero_point: Tensor) -> tuple[Tensor, Tensor]:
    """The extremes of which an observer makes this scale and zero point."""
    observer = fake_quantize.activation_post_process
    low, high = observer.quant_min, observer.quant_max
    if observer.qscheme in _SYMMETRIC:
        half = scale * (high - low) / 2
        return -half, half
    return (low - zero_point) * scale, (high - zero_point) * scale


def simulate(fake_quantize: Any, values: Tensor, factor: Tensor | None, world: World | None) -> Tensor:
    """What a fake-quantize module makes of values, or of their product with a factor a channel (C).

    Its observer sees them first, where it is on: those of all processes of `world`. On the CPU the arithmetic is
    straight_through.py's, to torch's bits in a fraction of its time.
    """
    on_cpu = values.device.type == "cpu" and values.dtype == torch.float32
    observer = fake_quantize.activation_post_process
    if factor is not None and not (on_cpu and fake_quantize.is_per_channel and fake_quantize.fake_quant_enabled.item()):
        values, factor = values * factor.view(-1, *(1,) * (values.dim() - 1)), None
    if fake_quantize.observer_enabled.item():
        low, high = extremes(values, fake_quantize.is_per_channel)
        if factor is not None:
            # A product is rounded monotonically, so its extremes are the products of the extremes.
            low, high = (torch.stack((low, high)) * factor.detach()).aminmax(dim=0)
        observe(fake_quantize, *((low, high) if world is None else world.extremes(low, high)))
    if not fake_quantize.fake_quant_enabled.item():
        return values
    lowest, highest = observer.quant_min, observer.quant_max
    scale, zero_point = fake_quantize.scale, fake_quantize.zero_point
    if on_cpu:
        offset = int(zero_point[0])
        # One for all, since the scheme by channel is symmetric.
        assert (zero_point == offset).all()
        simulated: Tensor = FakeQuantize.apply(values, factor, scale, lowest - offset, highest - offset)
        return simulated
    if fake_quantize.is_per_channel:
        return torch.fake_quantize_per_channel_affine(values, scale, zero_point, 0, lowest, highest)
    return torch.fake_quantize_per_tensor_affine(values, scale, zero_point, lowest, highest)


def invertible(factor: Tensor, weight: Tensor, fake_quantize: Any) -> Tensor:
    """The factors (C) of the channels of `weight` (C, …), with another one where dividing by it would say nothing.

    A factor of 0 makes weights of 0, and 0 / 0 is no number. One so small that the scale of its channel stands at its
    floor leaves few levels or none, and the division makes rounding errors large. BatchNorm multiplies what was
    divided by gamma, so any factor gives the same output: beta alone where gamma is 0. One that the levels can hold
    also gives gamma the gradient of a float model. It moves no range: by channel the scale stays at its floor; and
    one scale for all channels is that of larger weights.
    """
    observer = getattr(fake_quantize, "activation_post_process", fake_quantize)  # an observer may stand alone
    with torch.no_grad():
        low, high = extremes(weight, per_channel=True)
        largest = torch.maximum(-low, high)
        reached = largest * factor.abs()
        floor = torch.full_like(reached, observer.quant_max * torch.finfo(torch.float32).eps)
        if observer.qscheme in (torch.per_channel_symmetric, torch.per_channel_affine):
            lost, reach = reached < floor, floor
        else:
            lost, reach = factor == 0, torch.maximum(reached.amax() / 2, floor)
        lost = lost & ((largest > 0) | (factor == 0))  # weights of 0 give 0 by any other factor
        other = torch.where(largest > 0, reach / largest.clamp(min=torch.finfo(torch.float32).tiny), 1.0)
    return torch.where(lost, torch.copysign(other, factor.detach()), factor)
