"""Distillation: a model learns from the outputs of a teacher beside the targets."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from pipeline.tasks.contract import Task
from pipeline.training.loop import Loss


def distillation_loss(
    task: Task, teacher: nn.Module, weight: float, temperature: float, label_smoothing: float
) -> Loss:
    """(1 - weight) · the task's loss + weight · its loss against the teacher's outputs.

    The teacher computes in evaluation mode, and learns nothing.
    """
    teacher.eval().requires_grad_(False)

    def loss_of(images: Tensor, outputs: Tensor, targets: Tensor) -> Tensor:
        with torch.no_grad():
            wanted = teacher(images)
        hard = task.loss(outputs, targets, label_smoothing)
        return (1 - weight) * hard + weight * task.distill(outputs, wanted, temperature)

    return loss_of
