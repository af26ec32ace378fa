"""The tasks, found by their declaration `TASK`, and the one that `task` names."""

from __future__ import annotations

import functools

from pipeline.datasets import catalogue
from pipeline.datasets.spec import DatasetInfo
from pipeline.host.declared import choose, declared_in, module_named
from pipeline.settings.config import Config
from pipeline.tasks.contract import Task

_ROOM = "pipeline.tasks"


@functools.cache
def registry() -> dict[str, Task]:
    """Every task of this project by its name, which is that of its module."""
    return declared_in(_ROOM, "TASK")


def find(name: str) -> Task:
    """The task that `task` names, one of these or the user's own.

    Raises:
        UserError: when there is none.
    """
    return choose("task", name, registry(), Task)


def module_of(name: str) -> str:
    """The module that declares it."""
    return module_named(name, _ROOM)


def info(config: Config) -> DatasetInfo:
    """Channels of the data set, and what a network for the task gives."""
    return find(config.task).info(catalogue.info(config.dataset))
