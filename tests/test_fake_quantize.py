"""Vectorized fake-quantize against torch's own kernels: the same bits, forward, backward and in the observers."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.ao.quantization import FusedMovingAvgObsFakeQuantize, get_default_qat_qconfig

from pipeline.quantization.vectorized import VectorizedFakeQuantize, vectorize


def pair(backend: str, role: str) -> tuple[nn.Module, nn.Module]:
    """torch's fake-quantize module, and one like it that computes vectorized."""
    stock, ours = (getattr(get_default_qat_qconfig(backend), role)() for _ in range(2))
    vectorize(ours)
    assert type(stock) is FusedMovingAvgObsFakeQuantize
    assert type(ours) is VectorizedFakeQuantize
    return stock, ours


def step(module: nn.Module, values: Tensor, gradient: Tensor) -> tuple[Tensor, Tensor | None]:
    values = values.clone().requires_grad_()
    output = module(values)
    output.backward(gradient)
    return output.detach(), values.grad


def check(stock: nn.Module, ours: nn.Module, values: Tensor, ranges_alone: bool = False) -> None:
    gradient = torch.randn(values.shape, generator=torch.Generator().manual_seed(9))
    (expected, expected_gradient), (output, output_gradient) = (
        step(module, values, gradient) for module in (stock, ours)
    )
    assert torch.equal(output, expected)
    assert expected_gradient is not None
    assert output_gradient is not None
    assert torch.equal(output_gradient, expected_gradient)
    assert stock.state_dict().keys() == ours.state_dict().keys()
    for name, value in stock.state_dict().items():
        if not (ranges_alone and name in ("scale", "zero_point")):  # torch then leaves them uninitialized
            assert torch.equal(ours.state_dict()[name], value), name


@pytest.mark.parametrize("role", ["activation", "weight"])
@pytest.mark.parametrize("backend", ["fbgemm", "qnnpack", "x86", "onednn"])
def test_bits_are_those_of_torchs_kernels_when_ranges_move_freeze_and_clip(backend: str, role: str) -> None:
    stock, ours = pair(backend, role)
    generator = torch.Generator().manual_seed(1)

    def values(scale: float, shift: float = 0.0) -> Tensor:
        return scale * torch.randn(16, 8, 5, 5, generator=generator) + shift

    for moving in (values(1), values(3), values(0.1), values(2, shift=5), values(1).relu(), torch.zeros(16, 8, 5, 5)):
        check(stock, ours, moving)
    for module in (stock, ours):
        module.disable_observer()  # type: ignore[operator]
    for frozen in (values(0.01), values(30), values(30, shift=100), values(30, shift=-100)):
        check(stock, ours, frozen)  # none, both, the upper or the lower side clipped


@pytest.mark.parametrize("role", ["activation", "weight"])
def test_bits_are_those_of_torchs_kernels_when_values_lie_between_two_levels(role: str) -> None:
    stock, ours = pair("fbgemm", role)
    first = torch.linspace(-4, 4, 2 * 4 * 9).view(2, 4, 3, 3)
    check(stock, ours, first)
    halves = torch.arange(-8, 8).view(2, 2, 2, 2) + 0.5
    scale = stock.scale.view(-1, 1, 1, 1) if role == "weight" else stock.scale  # type: ignore[union-attr, operator]
    for module in (stock, ours):
        module.disable_observer()  # type: ignore[operator]
    check(stock, ours, halves * scale)


@pytest.mark.parametrize("role", ["activation", "weight"])
def test_ranges_alone_move_when_fake_quantize_is_off(role: str) -> None:
    stock, ours = pair("fbgemm", role)
    generator = torch.Generator().manual_seed(2)
    for module in (stock, ours):
        module.disable_fake_quant()  # type: ignore[operator]
    for _ in range(3):
        values = torch.randn(8, 4, 3, 3, generator=generator)
        check(stock, ours, values, ranges_alone=True)
    for module in (stock, ours):
        module.enable_fake_quant()  # type: ignore[operator]
        module.disable_observer()  # type: ignore[operator]
    check(stock, ours, torch.randn(8, 4, 3, 3, generator=generator))
