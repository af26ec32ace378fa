"""Training: one loop, read from top to bottom, for float training and for QAT alike.

Every epoch's randomness (order, augmentation, dropout) is seeded by seed, curve name and epoch alone,
so a run that is killed and resumed goes on exactly as an undisturbed one would.
"""

from __future__ import annotations

import math
import time
import zlib
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as functional
from torch import Tensor, nn
from torch.optim import SGD, Adam, AdamW, Optimizer
from torch.optim.lr_scheduler import ConstantLR, CosineAnnealingLR, LRScheduler, OneCycleLR, StepLR

from pipeline import terminal
from pipeline.config import DatasetConfig, OptimizationConfig
from pipeline.datasets.loader import count_batches, evaluation_batches, training_batches
from pipeline.datasets.spec import Part
from pipeline.errors import UserError
from pipeline.files import save_tensors
from pipeline.machine import Machine
from pipeline.quantization import observers_off
from pipeline.stage import PROGRESS_FILE, Context


def fit(
    model: nn.Module,
    settings: OptimizationConfig,
    dataset: DatasetConfig,
    seed: int,
    context: Context,
    curve: str,
    before_step: Callable[[nn.Module, float], None] = lambda model, epochs_done: None,
) -> None:
    """Train `model` in place, and leave it with the parameters of the epoch that `settings.keep` names.

    Reports `<curve>/loss` and `<curve>/val_accuracy_pct` an epoch. After each epoch a checkpoint is
    written into `context.folder`; where one is found, training goes on from it.

    Args:
        before_step: is called before every step with the model and the epochs done so far (2.5: in the
            middle of the third); it must do the same for the same value, for a resumed run's sake.

    Raises:
        UserError: when the loss is no longer finite.
    """
    training, validation = context.load_training()
    device = context.device
    model.to(device)
    if settings.channels_last:
        model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    steps = count_batches(training, settings.batch_size, training=True)
    optimizer = _optimizer(model, settings)
    scheduler = _scheduler(optimizer, settings, steps)
    first_epoch, best_accuracy, best = _resume(model, optimizer, scheduler, context)

    for epoch in range(first_epoch, settings.epochs):
        started = time.perf_counter()
        generator = _seed_epoch(seed, curve, epoch)
        losses: list[Tensor] = []
        correct, seen = torch.zeros((), dtype=torch.long, device=device), 0
        model.train()
        description = f"{curve} epoch {epoch + 1}/{settings.epochs}"
        with terminal.bar(description, steps, unit="batch") as bar:
            batches = training_batches(training, dataset, settings.batch_size, device, generator)
            for step, (images, labels) in enumerate(batches):
                with context.machine.computing():
                    before_step(model, epoch + step / steps)
                    if settings.channels_last:
                        images = images.contiguous(memory_format=torch.channels_last)
                    with _autocast(settings, device):
                        logits = model(images)
                        loss = functional.cross_entropy(logits, labels, label_smoothing=settings.label_smoothing)
                    optimizer.zero_grad()
                    loss.backward()  # type: ignore[no-untyped-call]
                    optimizer.step()
                    scheduler.step()
                losses.append(loss.detach())
                correct += (logits.argmax(1) == labels).sum()
                seen += len(labels)
                if step % _REPORT_EVERY == 0 or step + 1 == steps:  # each look waits for the device
                    _check_finite(losses, curve, epoch)
                    accuracy = 100 * int(correct) / seen
                    bar.set_postfix(loss=f"{losses[-1].item():.4f}", accuracy=f"{accuracy:.2f} %", refresh=False)
                bar.update(1)
        mean_loss = float(torch.stack(losses).double().mean())
        accuracy = accuracy_pct(
            predict(model, validation, dataset, settings.batch_size, device, "validate", context.machine), validation
        )
        context.metric(f"{curve}/loss", mean_loss, epoch)
        context.metric(f"{curve}/val_accuracy_pct", accuracy, epoch)
        terminal.epoch_line(
            f"  {description}  loss {mean_loss:.4f}  val_accuracy {accuracy:.2f} %"
            f"  {time.perf_counter() - started:.1f} s"
        )
        if settings.keep == "last" or accuracy >= best_accuracy:  # of equals the later, better converged
            best_accuracy = accuracy
            best = {name: value.detach().cpu().clone() for name, value in model.state_dict().items()}
        _checkpoint(model, optimizer, scheduler, context, epoch + 1, best_accuracy, best)

    if best:
        model.load_state_dict(best)


def is_open_ended(settings: OptimizationConfig) -> bool:
    """Whether a longer training begins exactly as this one: its schedule does not depend on the total.

    Such a training leaves its checkpoint, and a longer one goes on from it.
    """
    return settings.schedule in ("constant", "step")


@torch.inference_mode()
def predict(
    model: nn.Module,
    part: Part,
    dataset: DatasetConfig,
    batch_size: int,
    device: torch.device,
    description: str,
    machine: Machine,
) -> Tensor:
    """The predicted class of every image of `part`: int64 (N), on the CPU.

    Leaves the model in evaluation mode and its quantization ranges as they were.
    """
    model.eval()
    predicted, correct, seen = [], 0, 0
    batches = count_batches(part, batch_size, training=False)
    with observers_off(model), terminal.bar(description, batches, unit="batch") as bar:
        for images, labels in evaluation_batches(part, dataset, batch_size, device):
            with machine.computing():
                chosen = model(images).argmax(1)
            predicted.append(chosen.cpu())
            correct += int((chosen == labels).sum())
            seen += len(labels)
            bar.set_postfix(accuracy=f"{100 * correct / seen:.2f} %", refresh=False)
            bar.update(1)
    return torch.cat(predicted)


def accuracy_pct(predicted: Tensor, part: Part) -> float:
    """The share of `predicted` (N) that equals the labels, in percent."""
    return 100 * float((predicted == part.labels).double().mean())


# Steps between two looks at loss and accuracy.
_REPORT_EVERY = 10


def _optimizer(model: nn.Module, settings: OptimizationConfig) -> Optimizer:
    rate, decay = settings.learning_rate, settings.weight_decay
    if settings.optimizer == "sgd":
        return SGD(model.parameters(), rate, momentum=settings.momentum, weight_decay=decay)
    return {"adam": Adam, "adamw": AdamW}[settings.optimizer](model.parameters(), rate, weight_decay=decay)


def _scheduler(optimizer: Optimizer, settings: OptimizationConfig, steps: int) -> LRScheduler:
    total = steps * settings.epochs
    if settings.schedule == "one_cycle":
        # One spare step: step() is called after the last batch too.
        return OneCycleLR(optimizer, settings.learning_rate, total_steps=total + 1, cycle_momentum=False)
    if settings.schedule == "cosine":
        return CosineAnnealingLR(optimizer, T_max=total)
    if settings.schedule == "step":
        return StepLR(optimizer, step_size=settings.step_epochs * steps, gamma=settings.step_gamma)
    return ConstantLR(optimizer, factor=1.0)


def _autocast(settings: OptimizationConfig, device: torch.device) -> torch.autocast:
    automatic = settings.precision == "auto" and device.type == "cuda" and torch.cuda.is_bf16_supported()
    return torch.autocast(device.type, torch.bfloat16, enabled=automatic or settings.precision == "bf16")


def _seed_epoch(seed: int, curve: str, epoch: int) -> torch.Generator:
    """Seed torch for one epoch (dropout draws from it), and give the generator of its data order."""
    sequence = np.random.SeedSequence([seed, zlib.crc32(curve.encode()), epoch])
    for_torch, for_data = (int(state) for state in sequence.generate_state(2, np.uint64))
    torch.manual_seed(for_torch)
    return torch.Generator().manual_seed(for_data)


def _check_finite(losses: list[Tensor], curve: str, epoch: int) -> None:
    recent = torch.stack(losses[-_REPORT_EVERY - 1 :])
    wrong = (~recent.isfinite()).nonzero()
    if len(wrong):
        first = int(wrong[0])
        step = len(losses) - len(recent) + first + 1
        raise UserError(
            f"{curve}: the loss is {recent[first].item()} in epoch {epoch + 1}, step {step}: "
            f"{curve}.learning_rate is likely too high"
        )


def _checkpoint(
    model: nn.Module,
    optimizer: Optimizer,
    scheduler: LRScheduler,
    context: Context,
    epochs_done: int,
    best_accuracy: float,
    best: dict[str, Tensor],
) -> None:
    state = {
        "epochs_done": epochs_done,
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "scheduler": scheduler.state_dict(),
        "best_accuracy": best_accuracy,
        "best": best,
        "history": context.history,
    }
    save_tensors(state, context.folder / PROGRESS_FILE)


def _resume(
    model: nn.Module, optimizer: Optimizer, scheduler: LRScheduler, context: Context
) -> tuple[int, float, dict[str, Tensor]]:
    path = context.folder / PROGRESS_FILE
    if not path.exists():
        return 0, -math.inf, {}
    try:
        # On the CPU: load_state_dict moves what belongs on the device, and leaves there what does not.
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # damaged bytes make the unpickler raise almost anything
        terminal.warn(f"{path} is damaged ({type(error).__name__}): training starts again")
        path.unlink()
        return 0, -math.inf, {}
    model.load_state_dict(state["model"])
    optimizer.load_state_dict(state["optimizer"])
    scheduler.load_state_dict(state["scheduler"])
    for name, value, epoch in state["history"]:
        context.metric(name, value, epoch)
    terminal.say(f"  resumed after epoch {state['epochs_done']}")
    return state["epochs_done"], state["best_accuracy"], state["best"]
