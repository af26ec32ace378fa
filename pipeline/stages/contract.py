"""The contract of a stage: what it declares, and what it is given.

A stage is a function `run(config, inputs, context)`. It sees only the sections of the configuration
that it declares (they make its key), finds the forms that it consumes in `inputs`, writes into
`context.folder` and reports its numbers through `context`. It knows nothing of Hydra, MLflow, the
artifact store or the other stages.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import torch
from torch import nn

from pipeline.datasets.spec import DatasetInfo, Part, PartName
from pipeline.flows.eager import Form
from pipeline.host.files import save_tensors
from pipeline.host.machine import Machine
from pipeline.host.world import SOLO, World
from pipeline.settings.config import Config

MODEL_FILE = "model.pt"
# The checkpoint of a training that is under way, or may go on.
PROGRESS_FILE = "progress.pt"

# name, value, step (None: a number of the whole run)
Metric = tuple[str, float, int | None]


@dataclass
class Context:
    """What a stage works with besides its configuration.

    Attributes:
        folder: the only place to write to; what is in it at the end becomes the artifact.
        device: where to train.
        info: channels and classes of the data set.
        load_training: gives the training and the validation part.
        load_test: gives the test part.
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


# What one stage makes and others consume: a form of the model, or a folder of exported models.
Product = Form | Literal["exports"]
Inputs = Mapping[Product, Path]


@dataclass(frozen=True)
class Stage:
    """The declaration at the end of a stage's file.

    Attributes:
        name: as in `stages`, and the file's name.
        run: the function.
        sections: the settings of the configuration that it may read; they go into its key.
        also_reads: more sections that it reads, and that come into its key, for this configuration.
        ignores: dotted settings of those sections that do not change its result.
        consumes: the forms it needs, as checkpoints (exports: as a folder).
        also_consumes: the forms that it takes too for this configuration; it may look at `stages`. They come
            into its key with the stages that make them.
        produces: the form it makes, or None for one that only measures.
        parts: the parts of the data set that it reads.
        trains: all processes of a run do it together; the other stages are rank 0's alone.
        measures_machine: its result depends on this machine's processor and libraries.
        extends: the setting, as section and name, of which a larger value only goes on where a smaller
            one ended, when `is_open_ended` says so of the configuration.
    """

    name: str
    run: Callable[[Config, Inputs, Context], None]
    sections: tuple[str, ...]
    also_reads: Callable[[Config], tuple[str, ...]] = lambda config: ()
    consumes: tuple[Product, ...] = ()
    also_consumes: Callable[[Config], tuple[Product, ...]] = lambda config: ()
    produces: Product | None = None
    ignores: tuple[str, ...] = ()
    parts: tuple[PartName, ...] = ()
    trains: bool = False
    measures_machine: bool = False
    extends: tuple[str, str] | None = None
    is_open_ended: Callable[[Config], bool] = lambda config: False

    def inputs(self, config: Config) -> tuple[Product, ...]:
        """Every form that it takes for this configuration."""
        return (*self.consumes, *self.also_consumes(config))

    def reads(self, config: Config) -> tuple[str, ...]:
        """Every section that it reads for this configuration."""
        return (*self.sections, *self.also_reads(config))
