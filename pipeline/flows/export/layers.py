"""A layer with weights in a prepared graph: a convolution or a linear layer, with the BatchNorm behind it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from pipeline.flows.export.fake_quantize import FakeQuantize
from pipeline.flows.simulation import invertible
from pipeline.flows.straight_through import Unscale


class WeightedLayer(nn.Module):
    """Stands in the graph instead of `operator(values, weight, bias, *rest)` and of the BatchNorm behind it.

    In training the BatchNorm is kept, and finds what it would find in a float network: the convolution's weight is
    scaled by gamma / sigma, fake-quantized, and the result divided by the factor again (Krishnamoorthi 2018,
    "Quantizing deep convolutional networks for efficient inference", section 3.2.2). torchao's pattern does the same,
    with torch's defaults instead of the BatchNorm's own eps, and divides 0 by 0 where gamma is 0. Where the BatchNorm
    goes by its running statistics, in evaluation or because they are frozen, the layer computes bit for bit what the
    converted one will: the BatchNorm folded into weight and bias, which also costs less.

    Attributes:
        operator, rest: the ATen operator, and its arguments behind the bias.
        norm: the BatchNorm, or None.
        input_fake_quantize: of the values that it is given, where they are quantized. It stands in the graph itself,
            and may be that of other layers too, so it is no submodule here.
    """

    bias: Tensor | None
    norm: Any  # nn.Module's own type of a module or None has no call

    def __init__(
        self,
        operator: Callable[..., Tensor],
        rest: tuple[Any, ...],
        weight: Tensor,
        bias: Tensor | None,
        norm: nn.BatchNorm2d | None,
        weight_fake_quant: FakeQuantize,
        input_fake_quantize: FakeQuantize | None,
    ) -> None:
        super().__init__()
        self.operator, self.rest = operator, rest
        self.weight = weight if isinstance(weight, nn.Parameter) else nn.Parameter(weight)
        self.register_parameter("bias", bias)  # type: ignore[arg-type]
        self.norm = norm
        self.weight_fake_quant = weight_fake_quant
        self._input_fake_quantize = (input_fake_quantize,)

    @property
    def input_fake_quantize(self) -> FakeQuantize | None:
        return self._input_fake_quantize[0]

    def forward(self, values: Tensor) -> Tensor:
        if self.norm is None or not self.norm.training:
            weight, factor, bias = self.folded()
            return self.operator(values, self.weight_fake_quant(weight, factor), bias, *self.rest)
        factor = invertible(self._factor(), self.weight, self.weight_fake_quant)
        weight = self.weight_fake_quant(self.weight, factor)
        convolved: Tensor = Unscale.apply(self.operator(values, weight, None, *self.rest), factor)
        if self.bias is not None:
            convolved = convolved + self.bias.view(1, -1, 1, 1)
        normalized: Tensor = self.norm(convolved)
        return normalized

    def folded(self) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """Weight, its factor a channel, and bias, such that the operator with their product needs no BatchNorm."""
        if self.norm is None:
            return self.weight, None, self.bias
        factor = self._factor()
        mean = self.norm.running_mean
        shifted = mean if self.bias is None else mean - self.bias
        return self.weight, factor, self.norm.bias - shifted * factor

    def _factor(self) -> Tensor:
        factor: Tensor = self.norm.weight / torch.sqrt(self.norm.running_var + self.norm.eps)
        return factor

    def quantized(self, values: Tensor) -> Tensor:
        """The output for float values, with what goes in and the weights quantized."""
        for module in (self.input_fake_quantize, self.weight_fake_quant):
            if module is not None:
                module.enable_fake_quant()
        if self.input_fake_quantize is not None:
            values = self.input_fake_quantize(values)
        output: Tensor = self(values)
        for module in (self.input_fake_quantize, self.weight_fake_quant):
            if module is not None:
                module.disable_fake_quant()
        return output
