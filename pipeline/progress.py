"""The checkpoint of a training under way: everything that the next epoch depends on, complete or absent."""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from pipeline import terminal
from pipeline.errors import UserError
from pipeline.files import load_tensors, save_tensors
from pipeline.stage import PROGRESS_FILE, Context


@dataclass
class Progress:
    """How far a training is, and the best epoch so far.

    Attributes:
        epochs_done: finished epochs.
        best_accuracy: of the kept epoch, in percent.
        best: its `state_dict`, on the CPU; empty before the first epoch is done.
    """

    epochs_done: int = 0
    best_accuracy: float = -math.inf
    best: dict[str, Tensor] = field(default_factory=dict)

    def keep(self, model: nn.Module, accuracy: float) -> None:
        """Take this epoch for the best."""
        self.best_accuracy = accuracy
        self.best = {name: value.detach().cpu().clone() for name, value in model.state_dict().items()}


def save(progress: Progress, model: nn.Module, optimizer: Optimizer, scheduler: LRScheduler, context: Context) -> None:
    """Write the checkpoint into the stage's folder; of several processes, rank 0 does."""
    if not context.world.is_main:
        return
    state = {
        "epochs_done": progress.epochs_done,
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "scheduler": scheduler.state_dict(),
        "best_accuracy": progress.best_accuracy,
        "best": progress.best,
        "history": context.history,
    }
    save_tensors(state, context.folder / PROGRESS_FILE)


def resume(model: nn.Module, optimizer: Optimizer, scheduler: LRScheduler, context: Context) -> Progress:
    """Load the checkpoint of the stage's folder where there is one, and report its metrics again."""
    path = context.folder / PROGRESS_FILE
    if not path.exists():
        return Progress()
    parts: tuple[Any, ...] = (model, optimizer, scheduler)
    before = copy.deepcopy([part.state_dict() for part in parts])
    try:
        # On the CPU: load_state_dict moves what belongs on the device, and leaves there what does not.
        state: dict[str, Any] = load_tensors(path)
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        scheduler.load_state_dict(state["scheduler"])
        found = Progress(int(state["epochs_done"]), float(state["best_accuracy"]), dict(state["best"]))
        history = [(str(name), float(value), int(epoch)) for name, value, epoch in state["history"]]
    except (UserError, RuntimeError, LookupError, TypeError, ValueError, AttributeError) as error:
        terminal.warn(f"{path} is damaged ({type(error).__name__}): training starts again")
        path.unlink(missing_ok=True)
        for part, state in zip(parts, before, strict=True):
            part.load_state_dict(state)
        return Progress()
    for name, value, epoch in history:
        context.metric(name, value, epoch)
    terminal.say(f"  resumed after epoch {found.epochs_done}")
    return found
