"""Regression of one number: what digit an image shows, as an amount; judged by the mean absolute error."""

from __future__ import annotations

import dataclasses

import torch
import torch.nn.functional as functional
from torch import Tensor

from pipeline.datasets.spec import DatasetInfo, PartName
from pipeline.host.errors import UserError
from pipeline.tasks import Metric
from pipeline.tasks.contract import Task


class Amount(Task):
    """Outputs are (N, 1), targets whole numbers (N), decisions amounts (N)."""

    primary = Metric("absolute_error", higher_is_better=False)

    def info(self, data: DatasetInfo) -> DatasetInfo:
        return dataclasses.replace(data, class_names=(), outputs=1)

    def check(self, targets: Tensor, part: PartName, class_names: tuple[str, ...], told: str) -> None:
        if targets.min() < 0:
            raise UserError(f"{told} has the target {targets.min()}; allowed: at least 0")

    def loss(self, outputs: Tensor, targets: Tensor, label_smoothing: float) -> Tensor:
        return functional.mse_loss(outputs[:, 0], targets.float())

    def decide(self, outputs: Tensor) -> Tensor:
        return outputs[:, 0]

    def score(self, decided: Tensor, targets: Tensor) -> Tensor:
        return (decided - targets).abs()

    def agree(self, decided: Tensor, reference: Tensor) -> Tensor:
        return torch.isclose(decided, reference, rtol=0.0, atol=0.5)


TASK = Amount()
