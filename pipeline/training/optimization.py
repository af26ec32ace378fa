"""What a training's settings mean in torch: its optimizer, its learning-rate schedule, its arithmetic."""

from __future__ import annotations

import torch
from torch import nn
from torch.optim import SGD, Adam, AdamW, Optimizer
from torch.optim.lr_scheduler import (
    ConstantLR,
    CosineAnnealingLR,
    LinearLR,
    LRScheduler,
    OneCycleLR,
    SequentialLR,
    StepLR,
)

from pipeline.settings.config import OptimizationConfig


def make_optimizer(model: nn.Module, settings: OptimizationConfig) -> Optimizer:
    """The optimizer over all parameters of `model`, in torch's fused form: one pass instead of ten."""
    rate, decay = settings.learning_rate, settings.weight_decay
    if settings.optimizer == "sgd":
        return SGD(model.parameters(), rate, momentum=settings.momentum, weight_decay=decay, fused=True)
    kind = {"adam": Adam, "adamw": AdamW}[settings.optimizer]
    return kind(model.parameters(), rate, weight_decay=decay, fused=True)


def make_scheduler(optimizer: Optimizer, settings: OptimizationConfig, steps: int) -> LRScheduler:
    """The learning-rate schedule, stepped after each of the `steps` batches of an epoch.

    Over `warmup_epochs` the rate climbs linearly to `learning_rate` (Goyal et al. 2017, "Accurate, Large
    Minibatch SGD", section 2.2), and the schedule follows: cosine over the epochs that are left, step and
    constant counted from the end of the warm-up.
    """
    warmup = round(settings.warmup_epochs * steps)
    if warmup == 0:
        return _main_schedule(optimizer, settings, steps, settings.epochs * steps)
    # Step k of the warm-up, from 0, has the rate (k + 1) / (warmup + 1): none is without effect.
    climb = LinearLR(optimizer, start_factor=1 / (warmup + 1), total_iters=warmup)
    main = _main_schedule(optimizer, settings, steps, max(1, settings.epochs * steps - warmup))
    return SequentialLR(optimizer, [climb, main], milestones=[warmup])


def _main_schedule(optimizer: Optimizer, settings: OptimizationConfig, steps: int, total: int) -> LRScheduler:
    if settings.schedule == "one_cycle":
        # One spare step: step() is called after the last batch too.
        return OneCycleLR(optimizer, settings.learning_rate, total_steps=total + 1, cycle_momentum=False)
    if settings.schedule == "cosine":
        return CosineAnnealingLR(optimizer, T_max=total)
    if settings.schedule == "step":
        return StepLR(optimizer, step_size=settings.step_epochs * steps, gamma=settings.step_gamma)
    return ConstantLR(optimizer, factor=1.0)


def is_open_ended(settings: OptimizationConfig) -> bool:
    """Whether a longer training begins exactly as this one: its schedule does not depend on the total.

    Such a training leaves its checkpoint, and a longer one goes on from it.
    """
    return settings.schedule in ("constant", "step")


def autocast(settings: OptimizationConfig, device: torch.device) -> torch.autocast:
    """Mixed precision as `precision` says: `auto` is bf16 on a GPU that has it, and fp32 elsewhere."""
    automatic = settings.precision == "auto" and device.type == "cuda" and torch.cuda.is_bf16_supported()
    return torch.autocast(device.type, torch.bfloat16, enabled=automatic or settings.precision == "bf16")
