"""Distillation: a model learns from the outputs of a teacher beside the labels."""

from __future__ import annotations

import torch
import torch.nn.functional as functional
from torch import Tensor, nn

from pipeline.training.loop import Loss


def distillation_loss(teacher: nn.Module, weight: float, temperature: float, label_smoothing: float) -> Loss:
    """(1 - weight) · cross-entropy + weight · T² · KL(teacher ‖ student), both softened by T = `temperature`.

    Hinton, Vinyals and Dean 2015, "Distilling the Knowledge in a Neural Network", section 2; T² keeps the
    gradient's size as T changes. The teacher computes in evaluation mode, and learns nothing.
    """
    teacher.eval().requires_grad_(False)

    def loss_of(images: Tensor, logits: Tensor, labels: Tensor) -> Tensor:
        with torch.no_grad():
            wanted = functional.log_softmax(teacher(images) / temperature, dim=1)
        given = functional.log_softmax(logits / temperature, dim=1)
        divergence = functional.kl_div(given, wanted, reduction="batchmean", log_target=True)
        hard = functional.cross_entropy(logits, labels, label_smoothing=label_smoothing)
        return (1 - weight) * hard + weight * temperature**2 * divergence

    return loss_of
