"""The processes of a run beside rank 0: they train what it tells them to, and write, log and say nothing."""

from __future__ import annotations

import functools
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from pipeline.datasets import catalogue
from pipeline.datasets.spec import Part
from pipeline.flows.catalogue import find as find_flow
from pipeline.host.errors import UserError
from pipeline.host.files import in_project
from pipeline.host.machine import UNSHARED
from pipeline.host.world import World
from pipeline.run.artifact_store import Store
from pipeline.run.plan import Plan, Step, visible_config, visible_task
from pipeline.settings.config import Config
from pipeline.stages.contract import Inputs
from pipeline.tasks.catalogue import find as find_task
from pipeline.tasks.catalogue import info as task_info
from pipeline.training.context import Context


def check_processes(config: Config, size: int) -> None:
    """See that `size` processes can do together what is asked for.

    Raises:
        UserError: for the first setting that they cannot share.
    """
    if size == 1:
        return
    for section, settings in (("train", config.train), ("qat", config.qat)):
        key = f"{section}.batch_size={settings.batch_size}"
        if settings.batch_size % size:
            raise UserError(f"{key}: {size} processes share each batch equally; allowed: a multiple of {size}")
        if settings.compile:
            raise UserError(f"{section}.compile=true: allowed with {size} processes: false")
    if "qat" not in config.stages:
        return
    if config.backend.observer not in (None, "moving_average"):
        raise UserError(
            f"backend.observer={config.backend.observer}: {size} processes cannot agree on its ranges; "
            "allowed: moving_average"
        )
    if not config.backend.fake_quantize:
        raise UserError(f"backend.fake_quantize=false: allowed with {size} processes: true")


def announce(world: World, step: Step, inputs: Inputs, folder: Path) -> None:
    """Let the others train a step together with this process, rank 0.

    Raises:
        UserError: when others do not plan it: they see other data, settings or code.
    """
    world.tell((step.artifact, dict(inputs), folder))
    if world.size > 1:
        _agree(world, step.artifact, planned=True)


def follow(config: Config, plan: Plan, world: World, device: torch.device) -> None:
    """Train whatever rank 0 announces, until it tells that there is nothing more.

    Raises:
        UserError: when it announces what is not planned here: the processes see other data or settings.
    """
    steps, outputs = {step.artifact: step for step in plan.steps}, in_project(config.outputs)

    @functools.cache
    def load_training() -> tuple[Part, Part]:
        machine = Store(outputs / "artifacts").machine()
        training, validation = catalogue.load_training(config.dataset, machine, find_task(config.task).check)
        # No batch waits for a measurement: rank 0 may wait for it within `computing`, and the measurement for rank 0.
        return replace(training, machine=UNSHARED), replace(validation, machine=UNSHARED)

    while (announced := world.tell()) is not None:
        artifact, inputs, folder = announced
        _agree(world, artifact, planned=artifact in steps)
        stage = steps[artifact].stage
        context = Context(
            folder=folder,
            device=device,
            info=task_info(config),
            flow=find_flow(config.backend),
            task=visible_task(stage, config),
            load_training=load_training,
            load_test=undeclared_part,
            world=world,  # and no lock of the machine to train: rank 0 has it, and the others wait for rank 0
        )
        stage.run(visible_config(stage, config), inputs, context)


def _agree(world: World, artifact: str, planned: bool) -> None:
    """See that all processes are about to make the same: the key of an artifact hashes all that it depends on."""
    others = (~world.gather(torch.tensor([planned]))).nonzero().flatten().tolist()
    if others:
        raise UserError(
            f"torchrun: processes {', '.join(map(str, others))} see other data, settings or code than rank 0, which "
            f"trains {artifact}; allowed: equal copies of the data, the weights, the code and its libraries"
        )


def undeclared_part() -> Any:
    """Stands for a part of the data that a stage may not load."""
    raise AssertionError("this stage reads a part of the data that its declaration does not name")
