"""The contract of a task: what a network's outputs are worth.

Training, measuring, parity, stages and reports know this contract alone. A task decides what outputs say, and gives
each example a score; the mean of the scores is the metric by which models are judged and chosen.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
import torch.nn.functional as functional
from torch import Tensor

from pipeline.datasets.loader import crop_and_flip
from pipeline.datasets.spec import DatasetInfo, PartName
from pipeline.settings.config import DatasetConfig
from pipeline.tasks import Metric


class Task(ABC):
    """A task: one object in a file of this room that ends with its declaration `TASK`, or the user's own.

    Every tensor has an example a row: outputs (N, …) as the network gives them, targets (N, …) as the data set does,
    and decisions (N, …), which `decide` makes of outputs and which are kept of a whole part.
    """

    primary: Metric

    @abstractmethod
    def info(self, data: DatasetInfo) -> DatasetInfo:
        """The data set as a network has to know it: with as many outputs as the task asks for, and their names."""

    @abstractmethod
    def check(self, targets: Tensor, part: PartName, class_names: tuple[str, ...], told: str) -> None:
        """Refuse the targets of a part that is not empty; `told` begins the line: the data set and the part.

        Raises:
            UserError: saying what is allowed.
        """

    @abstractmethod
    def loss(self, outputs: Tensor, targets: Tensor, label_smoothing: float) -> Tensor:
        """The loss of a batch, a scalar."""

    def distill(self, outputs: Tensor, wanted: Tensor, temperature: float) -> Tensor:
        """The loss of a batch against a teacher's outputs, a scalar: here the mean of the squared differences."""
        return functional.mse_loss(outputs, wanted)

    def decide(self, outputs: Tensor) -> Tensor:
        """What outputs say, in as few numbers as scores need."""
        return outputs

    @abstractmethod
    def score(self, decided: Tensor, targets: Tensor) -> Tensor:
        """What each decision is worth, (N): bool where `primary.is_share`, else a number of its unit."""

    @abstractmethod
    def agree(self, decided: Tensor, reference: Tensor) -> Tensor:
        """Whether each decision is the same for whoever uses it, bool (N): the test of an exported file."""

    def value(self, decided: Tensor, targets: Tensor) -> float:
        """The primary metric of decisions."""
        return self.primary.scale * float(self.score(decided, targets).double().mean())

    def augment(
        self,
        images: Tensor,
        targets: Tensor,
        config: DatasetConfig,
        count: int,
        mine: slice,
        generator: torch.Generator,
    ) -> tuple[Tensor, Tensor]:
        """Change images, uint8 (B, C, S, S), and their targets (B, …) together; here crops and flips of images alone.

        Args:
            count: how many examples the batch has in all processes. What is random is drawn for all of them, on the
                CPU, so that several processes train as one would.
            mine: which of them these are.
        """
        return crop_and_flip(images, targets, config, count, mine, generator)

    def of_targets(self, targets: Tensor) -> dict[str, float]:
        """What a reader has to know of a part's targets to judge the metric, by names."""
        return {}

    def of_decisions(self, decided: Tensor) -> dict[str, float]:
        """The same of the decisions of one model."""
        return {}

    def groups(self, targets: Tensor, data: DatasetInfo) -> dict[str, Tensor]:
        """The examples that a reader wants to see apart, bool (N) by name: of a classification, those of each class."""
        return {}

    def show(
        self, decided: Mapping[str, Tensor], targets: Tensor, data: DatasetInfo, attach: Callable[[str], Path]
    ) -> None:
        """Draw what a reader would look at on the test part; by form, what it decided. `attach` gives a file's path."""
        return
