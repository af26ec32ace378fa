"""BatchNorm over the batch of all processes, on CPUs too, where torch's SyncBatchNorm refuses to work.

The same arithmetic: every process sends the mean and variance of its share forward, and the sums of two gradients
backward (torch.nn.SyncBatchNorm; Ioffe & Szegedy 2015, "Batch Normalization", for the gradients).
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as functional
from torch import Tensor, nn


def normalize_over_all(model: nn.Module) -> None:
    """Let every BatchNorm of `model` take its statistics from all processes; its state stays the same."""
    for module in model.modules():
        if type(module) is nn.BatchNorm2d:
            # The module as it is, with another forward: fused modules, freezing and convert know it as what it is.
            module.__class__ = _BatchNormOverAll


class _BatchNormOverAll(nn.BatchNorm2d):
    def forward(self, input: Tensor) -> Tensor:
        if not self.training:
            return super().forward(input)
        assert self.momentum is not None
        assert self.running_mean is not None
        assert self.running_var is not None
        mean, variance, count = _statistics(input.detach())
        with torch.no_grad():
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(variance * (count / (count - 1)), self.momentum)
            if self.num_batches_tracked is not None:
                self.num_batches_tracked += 1
        normalized: Tensor = _Normalize.apply(input, self.weight, self.bias, mean, variance, count, self.eps)
        return normalized


def _statistics(values: Tensor) -> tuple[Tensor, Tensor, int]:
    """Mean and biased variance of each channel (C) of (B, C, H, W) over all processes, and of how many values."""
    wide = values if values.dtype == torch.float64 else values.float()  # not in the 8 bits of bf16
    # BatchNorm's own kernel, which several times outruns torch.var_mean over these axes; momentum is without use here.
    mean, variance = torch.batch_norm_update_stats(wide, None, None, 0.0)
    mine = torch.stack([mean, variance])
    parts = [torch.empty_like(mine) for _ in range(dist.get_world_size())]
    dist.all_gather(parts, mine)
    means, variances = torch.stack(parts).unbind(1)
    # Shares are equal, so the whole's mean is the mean of means, and its variance that within plus that between.
    whole = means.mean(0)
    return whole, variances.mean(0) + (means - whole).square().mean(0), values.numel() // len(whole) * len(parts)


class _Normalize(torch.autograd.Function):
    """(x - mean) / sigma * weight + bias, where mean and sigma are those of x in all processes."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, mean: Tensor, variance: Tensor, count: int, eps: float
    ) -> Tensor:
        ctx.save_for_backward(x, weight, mean, variance)
        ctx.count, ctx.eps = count, eps
        return functional.batch_norm(x, mean, variance, weight, bias, training=False, eps=eps)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        x, weight, mean, variance = ctx.saved_tensors
        # With given statistics: what is left are the terms by which x moves mean and sigma.
        layout = torch.channels_last if x.is_contiguous(memory_format=torch.channels_last) else torch.contiguous_format
        direct, of_weight, of_bias = torch.ops.aten.native_batch_norm_backward(
            gradient.contiguous(memory_format=layout),
            x,
            weight,
            mean,
            variance,
            None,
            None,
            False,
            ctx.eps,
            [True, True, True],
        )
        sums = torch.stack([of_weight, of_bias])
        dist.all_reduce(sums)
        scale = (variance + ctx.eps).rsqrt()
        slope = weight * scale * scale * sums[0] / ctx.count
        offset = weight * scale * sums[1] / ctx.count - slope * mean
        shape = (1, -1, 1, 1)
        through_statistics = torch.addcmul(offset.view(shape), x, slope.view(shape))
        return (direct - through_statistics).to(x.dtype), of_weight, of_bias, None, None, None, None
