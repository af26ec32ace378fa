"""What a stage works with: its folder, the data, the processes and the machine, and who is told its numbers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import nn

from pipeline.datasets.spec import DatasetInfo, Part
from pipeline.flows.contract import Flow
from pipeline.host.files import save_tensors
from pipeline.host.machine import Machine
from pipeline.host.world import SOLO, World
from pipeline.tasks.contract import Task

MODEL_FILE = "model.pt"
# The checkpoint of a training that is under way, or may go on, and all that belongs to it.
PROGRESS_FILE = "progress.pt"
PROGRESS_FILES = "progress*.pt"

# name, value, step (None: a number of the whole run)
Metric = tuple[str, float, int | None]


@dataclass
class Context:
    """What a stage works with besides its configuration.

    Attributes:
        folder: the only place to write to; what is in it at the end becomes the artifact.
        device: where to train.
        info: channels of the data set, and what a network for the task gives.
        load_training: gives the training and the validation part.
        load_test: gives the test part.
        flow: how the backend goes from float to int8.
        task: what outputs are worth.
        machine: its `computing` and `measuring` keep training and latency measurements apart.
        world: the processes that run this stage together; of them rank 0 alone writes.
        on_metric: is told every metric at once.
        history: every metric so far.
        attachments: files in `folder` to show beside the run.
    """

    folder: Path
    device: torch.device
    info: DatasetInfo
    load_training: Callable[[], tuple[Part, Part]]
    load_test: Callable[[], Part]
    flow: Flow
    task: Task
    machine: Machine = field(default_factory=Machine)
    world: World = SOLO
    on_metric: Callable[[str, float, int | None], None] = lambda name, value, step: None
    history: list[Metric] = field(default_factory=list)
    attachments: list[Path] = field(default_factory=list)

    def metric(self, name: str, value: float, step: int | None = None) -> None:
        """Report a number; `step` is the epoch of a curve's point."""
        self.history.append((name, value, step))
        self.on_metric(name, value, step)

    def save_model(self, model: nn.Module) -> None:
        """Write the `state_dict` that this stage produces."""
        if self.world.is_main:
            save_tensors(model.state_dict(), self.folder / MODEL_FILE)

    def attach(self, name: str) -> Path:
        """A path in the folder for a file that is shown beside the run."""
        self.attachments.append(self.folder / name)
        return self.folder / name
