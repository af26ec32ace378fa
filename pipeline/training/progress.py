"""The checkpoint of a training under way: everything that the next epoch depends on, complete or absent.

The best epoch's weights lie in a file of their own, `progress-best-<epoch>.pt`, written once: when a later epoch is not
better. Until then they are the last epoch's, which `progress.pt` has.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from pipeline.host import terminal
from pipeline.host.errors import UserError
from pipeline.host.faults import fault
from pipeline.host.files import load_tensors, save_tensors
from pipeline.training.context import PROGRESS_FILE, PROGRESS_FILES, Context

_BEST = "progress-best-{}.pt"
# Instead of a number of epochs, of which there are so many at most.
_DAMAGED, _MOST_EPOCHS = -1, 2**31


@dataclass
class Progress:
    """How far a training is, and the best epoch so far.

    Attributes:
        epochs_done: finished epochs.
        best_value: of the primary metric, in the kept epoch; None: none is kept.
        best_epoch: which one it is, counted from 1; 0 is the start, before any training.
        best: its `state_dict`, on the CPU; empty before the first epoch is done, where the start does not count.
    """

    epochs_done: int = 0
    best_value: float | None = None
    best_epoch: int = 0
    best: dict[str, Tensor] = field(default_factory=dict)

    def keep(self, model: nn.Module, value: float) -> None:
        """Take the last finished epoch for the best."""
        self.best_value, self.best_epoch = value, self.epochs_done
        self.best = _cpu_copy(model.state_dict())


def _cpu_copy(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: value.detach().cpu().clone() for name, value in state.items()}


def save(progress: Progress, model: nn.Module, optimizer: Optimizer, scheduler: LRScheduler, context: Context) -> None:
    """Write the checkpoint into the stage's folder; of several processes, rank 0 does."""
    if not context.world.is_main:
        return
    state = {
        "epochs_done": progress.epochs_done,
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "scheduler": scheduler.state_dict(),
        "best_value": progress.best_value,
        "best_epoch": progress.best_epoch,
        "history": context.history,
    }
    apart = _best_file(progress, context.folder)
    if apart is not None and not apart.exists():
        save_tensors(progress.best, apart)
    save_tensors(state, context.folder / PROGRESS_FILE)
    for older in context.folder.glob(_BEST.format("*")):
        if older != apart:
            older.unlink()


def _best_file(progress: Progress, folder: Path) -> Path | None:
    """Where the best epoch's weights lie; None where the last epoch is the best."""
    return folder / _BEST.format(progress.best_epoch) if progress.best_epoch < progress.epochs_done else None


def resume(model: nn.Module, optimizer: Optimizer, scheduler: LRScheduler, context: Context) -> Progress:
    """Load the checkpoint of the stage's folder where there is one, and report its metrics again.

    One that is damaged is deleted, and training starts again; of several processes all do the same.

    Raises:
        UserError: when the processes do not see the same checkpoint.
        Exception: what the machine refuses, as too little memory, which is no fault of the checkpoint.
    """
    path = context.folder / PROGRESS_FILE
    parts: tuple[Any, ...] = (model, optimizer, scheduler)
    before = copy.deepcopy([part.state_dict() for part in parts]) if path.exists() else []
    found, history, damage = _read(path, parts) if before else (Progress(), [], "")
    epochs = context.world.gather(torch.tensor([_DAMAGED if damage else found.epochs_done]))
    if (epochs == _DAMAGED).any():
        if context.world.is_main:
            terminal.warn(f"{path} is damaged ({damage or 'in another process'}): training starts again")
            for file in context.folder.glob(PROGRESS_FILES):
                file.unlink()
        for part, state in zip(parts, before, strict=False):
            part.load_state_dict(state)
        return Progress()
    if (epochs != epochs[0]).any():
        seen = ", ".join(str(int(one)) for one in epochs)
        raise UserError(
            f"{path}: the processes see checkpoints after {seen} epochs; allowed: outputs in a folder that all share"
        )
    for name, value, epoch in history:
        context.metric(name, value, epoch)
    if found.epochs_done:
        terminal.say(f"  resumed after epoch {found.epochs_done}")
    return found


def _read(path: Path, parts: tuple[Any, ...]) -> tuple[Progress, list[tuple[str, float, int]], str]:
    """Load a checkpoint into `parts` (model, optimizer, scheduler): how far it is, its metrics, and what is damaged."""
    what = ""
    try:
        # On the CPU: load_state_dict moves what belongs on the device, and leaves there what does not.
        state: dict[str, Any] = load_tensors(path)
        for part, name in zip(parts, ("model", "optimizer", "scheduler"), strict=True):
            part.load_state_dict(state[name])
        found = Progress(
            epochs_done=int(state["epochs_done"]),
            best_value=float(state["best_value"]),
            best_epoch=int(state["best_epoch"]),
        )
        apart = _best_file(found, path.parent)
        if apart is not None:
            what = f"{apart.name}: "
        found.best = _cpu_copy(state["model"]) if apart is None else dict(load_tensors(apart))
        if not 0 < found.epochs_done <= _MOST_EPOCHS:
            raise ValueError
        return found, [(str(name), float(value), int(epoch)) for name, value, epoch in state["history"]], ""
    except (UserError, RuntimeError, LookupError, TypeError, ValueError, AttributeError, FileNotFoundError) as error:
        if fault(error) is not None:
            raise
        return Progress(), [], f"{what}{type(error).__name__}"
