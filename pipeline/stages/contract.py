"""The contract of a stage: what it declares, and what it is given.

A stage is a function `run(config, inputs, context)`. It sees only the sections of the configuration
that it declares (they make its key), finds the forms that it consumes in `inputs`, writes into
`context.folder` and reports its numbers through `context`. It knows nothing of Hydra, MLflow, the
artifact store or the other stages.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pipeline.datasets.spec import PartName
from pipeline.flows import Form
from pipeline.settings.config import Config
from pipeline.training.context import Context

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
        also_consumes: the forms that it takes too for this configuration; it may look at `stages` and `method`. They
            come into its key with the stages that make them.
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
