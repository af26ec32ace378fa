"""Vectorized fake-quantize against torch's own, unfused: the same bits, forward, backward and in the observers."""

from __future__ import annotations

import pytest
import torch
import torch.ao.nn.intrinsic.qat as nniqat
from torch import Tensor, nn
from torch.ao.quantization import FakeQuantize, FusedMovingAvgObsFakeQuantize, QConfig, get_default_qat_qconfig

from pipeline.flows import straight_through
from pipeline.flows.eager.vectorized import VectorizedFakeQuantize, vectorize


def pair(backend: str, role: str) -> tuple[nn.Module, nn.Module]:
    """torch's fake-quantize module without fused kernels, and one like it that computes vectorized."""
    fused = getattr(get_default_qat_qconfig(backend), role)
    stock, ours = FakeQuantize.with_args(**fused.p.keywords)(), fused()
    assert type(ours) is FusedMovingAvgObsFakeQuantize
    vectorize(ours)
    assert type(ours) is VectorizedFakeQuantize
    return stock, ours


def step(module: nn.Module, values: Tensor, gradient: Tensor) -> tuple[Tensor, Tensor | None]:
    values = values.clone().requires_grad_()
    output = module(values)
    output.backward(gradient)
    return output.detach(), values.grad


def check(stock: nn.Module, ours: nn.Module, values: Tensor) -> None:
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
        assert torch.equal(ours.state_dict()[name], value.to(ours.state_dict()[name].dtype)), name


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
        check(stock, ours, values)
    for module in (stock, ours):
        module.enable_fake_quant()  # type: ignore[operator]
        module.disable_observer()  # type: ignore[operator]
    check(stock, ours, torch.randn(8, 4, 3, 3, generator=generator))


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("role", ["activation", "weight"])
def test_bits_are_those_of_torchs_kernels_when_values_are_many_blocks_in_any_layout(
    role: str, memory_format: torch.memory_format, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(straight_through, "_BLOCK", 100)
    stock, ours = pair("fbgemm", role)
    generator = torch.Generator().manual_seed(4)
    for _ in range(2):
        values = torch.randn(6, 5, 7, 3, generator=generator).contiguous(memory_format=memory_format)
        check(stock, ours, values)
    check(stock, ours, torch.randn(6, 10, 7, 3, generator=generator)[:, ::2])  # with gaps


@pytest.mark.parametrize("gradient_ends", [(-128, 127), (0, 127), (0, 255), (-3, 124), (-114, 13)])
def test_gradient_passes_exactly_where_a_level_is_in_range_when_values_lie_at_its_ends(
    gradient_ends: tuple[int, int],
) -> None:
    low, high = gradient_ends
    for scale in torch.tensor([0.1, 0.037, 1.0, 3e-7, 0.9999999]):
        levels = torch.arange(low - 3, high + 4, 0.5)
        ends = levels * scale
        values = torch.cat((ends, ends.nextafter(torch.tensor(torch.inf)), ends.nextafter(torch.tensor(-torch.inf))))
        values.requires_grad_()
        straight_through.FakeQuantize.apply(values, None, scale.view(1), low, high).sum().backward()
        rounded = (values.detach() * (1 / scale)).round()
        assert torch.equal(values.grad, ((rounded >= low) & (rounded <= high)).float())


@pytest.mark.parametrize("relu", [False, True])
def test_conv_bn_trains_as_torchs_when_its_weight_is_scaled_and_fake_quantized_in_one_go(relu: bool) -> None:
    kind = nniqat.ConvBnReLU2d if relu else nniqat.ConvBn2d
    fused = get_default_qat_qconfig("fbgemm")
    unfused = QConfig(activation=fused.activation, weight=FakeQuantize.with_args(**fused.weight.p.keywords))
    torch.manual_seed(0)
    stock, ours = (kind(6, 8, 3, bias=False, padding=1, qconfig=qconfig) for qconfig in (unfused, fused))
    ours.load_state_dict(stock.state_dict())
    vectorize(ours)
    for step_number in range(4):
        with torch.no_grad():
            for module in (stock, ours):  # factors of either sign, and a channel of one sign
                module.bn.weight.copy_(torch.linspace(-2, 3, 8) + 0.3 * step_number)
                module.weight[2] = module.weight[2].abs()
        images = torch.randn(4, 6, 9, 9)
        outputs = [module(images) for module in (stock, ours)]
        assert torch.equal(outputs[1], outputs[0])
        weighted = torch.randn_like(outputs[0])
        for module, output in zip((stock, ours), outputs, strict=True):
            module.zero_grad()
            (output * weighted).sum().backward()
        for (name, expected), actual in zip(stock.named_parameters(), ours.parameters(), strict=True):
            torch.testing.assert_close(actual.grad, expected.grad, rtol=1e-4, atol=1e-4, msg=name)


@pytest.mark.parametrize("backend", ["fbgemm", "qnnpack"])
def test_fake_quantized_weights_are_those_that_convert_makes_when_a_channel_has_one_sign(backend: str) -> None:
    _, ours = pair(backend, "weight")
    weight = torch.randn(4, 3, 3, 3, generator=torch.Generator().manual_seed(5))
    weight[1], weight[2] = weight[1].abs() + 0.2, -weight[2].abs() - 0.1
    simulated = ours(weight)
    scale, zero_point = ours.calculate_qparams()  # type: ignore[operator]
    if backend == "fbgemm":
        quantized = torch.quantize_per_channel(weight, scale, zero_point, 0, torch.qint8)
    else:
        quantized = torch.quantize_per_tensor(weight, float(scale), int(zero_point), torch.qint8)
    torch.testing.assert_close(simulated, quantized.dequantize(), rtol=1e-6, atol=0)


def conv_bn_with_scale(scale: float, backend: str, fused_kernels: bool = True) -> nn.Module:
    """A Conv+BN whose BatchNorm scales of channels 2 and 5 are `scale`; a filter of channel 6 is all zero."""
    fused = get_default_qat_qconfig(backend)
    unfused = QConfig(activation=fused.activation, weight=FakeQuantize.with_args(**fused.weight.p.keywords))
    torch.manual_seed(0)
    module = nniqat.ConvBn2d(6, 8, 3, bias=False, padding=1, qconfig=fused if fused_kernels else unfused)
    with torch.no_grad():
        module.bn.weight.copy_(torch.linspace(0.5, 2, 8))
        module.bn.weight[[2, 5]] = scale
        module.bn.bias.copy_(torch.linspace(-1, 1, 8))
        module.weight[6] = 0
    return module


@pytest.mark.parametrize("scale", [0.0, -0.0, 1e-30, -1e-12, 1e-6])
@pytest.mark.parametrize("fused_kernels", [True, False])
@pytest.mark.parametrize("frozen", [True, False])
@pytest.mark.parametrize("backend", ["fbgemm", "qnnpack"])
def test_conv_bn_trains_as_in_float_when_a_scale_is_zero_or_tiny(
    backend: str, frozen: bool, fused_kernels: bool, scale: float
) -> None:
    module = conv_bn_with_scale(scale, backend, fused_kernels)
    vectorize(module)
    if frozen:
        module.freeze_bn_stats()
    twin = nn.Sequential(nn.Conv2d(6, 8, 3, bias=False, padding=1), nn.BatchNorm2d(8))
    twin[0].weight.data.copy_(module.weight)
    twin[1].load_state_dict(module.bn.state_dict())
    twin[1].train(not frozen)
    images = torch.randn(16, 6, 9, 9)
    weighted = torch.randn(16, 8, 9, 9)
    outputs = [each(images) for each in (module, twin)]
    for output in outputs:
        (output * weighted).sum().backward()
    small = [2, 5]
    torch.testing.assert_close(outputs[0][:, small], outputs[1][:, small], rtol=1e-3, atol=1e-5)
    if scale == 0:
        assert torch.equal(outputs[0][:, small], module.bn.bias[small].view(1, 2, 1, 1).expand(16, 2, 9, 9))
    assert all(parameter.grad is not None and parameter.grad.isfinite().all() for parameter in module.parameters())
    if backend == "fbgemm" or scale == 0:  # of one scale for all channels, tiny weights are 0 in int8 too
        gradients = module.bn.weight.grad[small], twin[1].weight.grad[small]
        torch.testing.assert_close(*gradients, rtol=0.1, atol=0.05 * twin[1].weight.grad.abs().max().item())
    torch.testing.assert_close(module.bn.running_var, twin[1].running_var, rtol=0.1, atol=1e-3)


@pytest.mark.parametrize("backend", ["fbgemm", "qnnpack"])
def test_ranges_of_other_channels_do_not_move_when_a_scale_is_zero(backend: str) -> None:
    ranges = []
    for scale in (0.0, 0.25):  # channels whose weights are not the largest
        module = conv_bn_with_scale(scale, backend)
        vectorize(module)
        for _ in range(3):
            module(torch.randn(4, 6, 9, 9))
        ranges.append(module.weight_fake_quant.scale)
    others = [0, 1, 3, 4, 6, 7] if len(ranges[0]) > 1 else [0]
    assert torch.equal(ranges[0][others], ranges[1][others])
