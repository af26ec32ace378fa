"""Training: one loop, read from top to bottom, for float training and for QAT alike.

Every epoch's randomness (order, augmentation, dropout) is seeded by seed, curve name and epoch alone,
so a run that is killed and resumed goes on exactly as an undisturbed one would.

Several processes share each batch: they take its images in equal parts, BatchNorm, dropout and observers go by all
of it, and the gradients are averaged, so that they learn what one process would.
"""

from __future__ import annotations

import contextlib
import math
import time
import warnings
import zlib
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from pipeline.datasets.loader import count_batches, evaluation_batches, training_batches
from pipeline.datasets.spec import Part
from pipeline.flows.contract import Trainable
from pipeline.host import terminal
from pipeline.host.errors import UserError
from pipeline.host.interruption import stop_if_interrupted
from pipeline.host.machine import Machine
from pipeline.host.world import SOLO, World
from pipeline.settings.config import DatasetConfig, OptimizationConfig, QatConfig
from pipeline.tasks import Metric
from pipeline.tasks.contract import Task
from pipeline.training import optimization, progress
from pipeline.training.batch_norm import normalize_over_all
from pipeline.training.compilation import CompiledForward
from pipeline.training.context import Context
from pipeline.training.dropout import drop_out_over_all

# The loss of a step from images (B, C, S, S), a network's outputs (B, …) and their targets (B, …).
Loss = Callable[[Tensor, Tensor, Tensor], Tensor]


def fit(
    model: nn.Module,
    settings: OptimizationConfig,
    dataset: DatasetConfig,
    seed: int,
    context: Context,
    curve: str,
    before_step: Callable[[nn.Module, float], None] = lambda model, epochs_done: None,
    loss_of: Loss | None = None,
    validate_further: Callable[[nn.Module, Part], dict[str, float]] = lambda model, validation: {},
    start_value: float | None = None,
    flow: Trainable | None = None,
) -> None:
    """Train `model` in place, and leave it with the parameters of the epoch that `settings.keep` names.

    Reports `<curve>/loss` and `<curve>/val_<metric>`, the primary metric, an epoch, and at the end which epoch is kept
    (`<curve>/kept_epoch`, counted from 1; 0: the start) and what all epochs take (`<curve>/seconds`). After each epoch
    a checkpoint is written into `context.folder`; where one is found, training goes on from it.

    Args:
        before_step: is called before every step with the model and the epochs done so far (2.5: in the
            middle of the third); it must do the same for the same value, for a resumed run's sake.
        loss_of: the loss of a step; without one, the task's.
        validate_further: more values of the primary metric on the validation part, by the name of
            their curve, reported as `<curve>/<name>`; the last of them decides which epoch is the best. It
            must leave the model as it is.
        start_value: what the decisive value is before any training, where the start is a candidate for
            the best epoch too: then nothing worse than it is kept.
        flow: whose model it is; None: a float network, which is nobody's.

    Raises:
        UserError: when the loss or a parameter is no longer finite.
    """
    training, validation = context.load_training()
    device, flow, world, task = context.device, flow or _FLOAT, context.world, context.task
    metric = task.primary
    model.to(device)
    if settings.channels_last:
        model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    steps = count_batches(training, settings.batch_size, training=True)
    optimizer = optimization.make_optimizer(model, settings)
    scheduler = optimization.make_scheduler(optimizer, settings, steps)
    so_far = progress.resume(model, optimizer, scheduler, context)
    if start_value is not None and so_far.epochs_done == 0 and settings.keep == "best":
        so_far.keep(model, start_value)
    forward = (
        _together(model, context.flow, world)
        if world.size > 1
        else CompiledForward(model, curve)
        if settings.compile
        else model
    )
    took: list[float] = []
    loss_of = loss_of or (lambda images, outputs, targets: task.loss(outputs, targets, settings.label_smoothing))

    for epoch in range(so_far.epochs_done, settings.epochs):
        started = time.perf_counter()
        generator = _seed_epoch(seed, curve, epoch)
        losses: list[Tensor] = []
        scored, seen = torch.zeros((), dtype=torch.double, device=device), 0
        flow.set_mode(model, training=True)
        description = f"{curve} epoch {epoch + 1}/{settings.epochs}"
        drawn = training_batches(training, dataset, settings.batch_size, device, generator, world, task.augment)
        with terminal.bar(description, steps, unit="batch") as bar, contextlib.closing(drawn) as batches:
            for step, (images, targets) in enumerate(batches):
                with context.machine.computing():
                    before_step(model, epoch + step / steps)
                    if settings.channels_last:
                        images = images.contiguous(memory_format=torch.channels_last)
                    with optimization.autocast(settings, device):
                        outputs = forward(images)
                        loss = loss_of(images, outputs, targets)
                    optimizer.zero_grad()
                    loss.backward()  # type: ignore[no-untyped-call]
                    optimizer.step()
                    scheduler.step()
                losses.append(loss.detach())
                scored += task.score(task.decide(outputs.detach()), targets).sum()
                seen += len(targets)
                if step % _REPORT_EVERY == 0 or step + 1 == steps:  # each look waits for the device
                    _check_finite(losses, settings, curve, epoch, world)
                    told = {"loss": f"{losses[-1].item():.4f}", metric.label: _mean_text(metric, scored, seen)}
                    bar.set_postfix(told, refresh=False)
                bar.update(1)
                stop_if_interrupted()
        _check_finite_parameters(model, settings, curve, epoch, steps)
        mean_loss = float(world.mean(torch.stack(losses).double().mean()))
        decided = predict(
            model, validation, dataset, settings.batch_size, device, "validate", flow, context.machine, task, world
        )
        values = {f"val_{metric.name}": task.value(decided, validation.labels), **validate_further(model, validation)}
        context.metric(f"{curve}/loss", mean_loss, epoch)
        for name, value in values.items():
            context.metric(f"{curve}/{name}", value, epoch)
        shown = "  ".join(
            f"{name.removesuffix(f'_{metric.unit}')} {metric.text(value)}" for name, value in values.items()
        )
        *_, decisive = values.values()
        so_far.epochs_done = epoch + 1
        took.append(time.perf_counter() - started)
        # Of equals the later, better converged.
        better = math.isnan(so_far.best_value) or metric.drop(so_far.best_value, decisive) <= 0
        if settings.keep == "last" or better:
            so_far.keep(model, decisive)
        progress.save(so_far, model, optimizer, scheduler, context)  # what is told to be done is kept
        terminal.epoch_line(f"  {description}  loss {mean_loss:.4f}  {shown}  {took[-1]:.1f} s")

    if so_far.best:
        # A state_dict also says the versions of modules, and some insist on theirs, as torchvision's MNASNet.
        state = model.state_dict()
        state.update(so_far.best)
        model.load_state_dict(state)
    context.metric(f"{curve}/kept_epoch", so_far.best_epoch)
    if took:
        # By the epochs that ran here: what a clock says is kept out of checkpoints, which are equal bit for bit.
        context.metric(f"{curve}/seconds", settings.epochs * sum(took) / len(took))


def _together(model: nn.Module, flow: Trainable, world: World) -> nn.Module:
    """`model` with gradients, BatchNorm statistics, dropout and quantization ranges of what all processes see."""
    normalize_over_all(model)
    drop_out_over_all(model)
    flow.observe_over_all(model, world)
    # Of a 1×1 convolution's gradient either stride is right, and copying it costs nothing that can be measured.
    warnings.filterwarnings("ignore", "Grad strides do not match bucket view strides")
    # Buffers need no sending: every process computes the same ones.
    return DistributedDataParallel(model, forward_sync_buffers=False, gradient_as_bucket_view=True)


def _mean_text(metric: Metric, scored: Tensor, seen: int) -> str:
    return metric.text(metric.scale * float(scored) / seen)


@torch.inference_mode()
def predict(
    model: nn.Module,
    part: Part,
    dataset: DatasetConfig,
    batch_size: int,
    device: torch.device,
    description: str,
    flow: Trainable,
    machine: Machine,
    task: Task,
    world: World = SOLO,
) -> Tensor:
    """What the task decides on every image of `part`: (N, …), on the CPU; each process of `world` takes its share.

    Leaves the model in evaluation mode and its quantization ranges as they were.
    """
    if world.size > 1:
        mine = np.array_split(np.arange(len(part)), world.size)[world.rank]
        chosen = part.select(mine)
        return world.gather(predict(model, chosen, dataset, batch_size, device, description, flow, machine, task))
    flow.set_mode(model, training=False)
    decided = [torch.empty(0, dtype=torch.long)]  # the share of one of many processes may be empty
    scored, seen = torch.zeros((), dtype=torch.double, device=device), 0
    batches = count_batches(part, batch_size, training=False)
    with flow.observers_off(model), terminal.bar(description, batches, unit="batch") as bar:
        for images, targets in evaluation_batches(part, dataset, batch_size, device):
            with machine.computing():
                decided.append(task.decide(model(images)))
            scored += task.score(decided[-1], targets).sum()
            decided[-1], seen = decided[-1].cpu(), seen + len(targets)
            bar.set_postfix({task.primary.label: _mean_text(task.primary, scored, seen)}, refresh=False)
            bar.update(1)
    return torch.cat(decided)


class _Float:
    """A float network, which needs torch's own modes alone: so its training, and its key, hold no flow's code."""

    def set_mode(self, model: nn.Module, training: bool) -> None:
        model.train(training)

    def observers_off(self, model: nn.Module) -> contextlib.AbstractContextManager[None]:
        return contextlib.nullcontext()

    def observe_over_all(self, model: nn.Module, world: World) -> None: ...


_FLOAT = _Float()
# Steps between two looks at loss and accuracy.
_REPORT_EVERY = 10


def _seed_epoch(seed: int, curve: str, epoch: int) -> torch.Generator:
    """Seed torch for one epoch (dropout draws from it), and give the generator of its data order."""
    sequence = np.random.SeedSequence([seed, zlib.crc32(curve.encode()), epoch])
    for_torch, for_data = (int(state) for state in sequence.generate_state(2, np.uint64))
    torch.manual_seed(for_torch)
    return torch.Generator().manual_seed(for_data)


def _check_finite_parameters(
    model: nn.Module, settings: OptimizationConfig, curve: str, epoch: int, steps: int
) -> None:
    """The last step changes the parameters after its loss was seen: a checkpoint of such a model is of no use."""
    for name, parameter in model.named_parameters():
        if not parameter.isfinite().all():
            raise UserError(
                f"{curve}: the parameter {name} is not finite after epoch {epoch + 1}, step {steps}: "
                f"{_rate(settings)} is likely too high"
            )


def _rate(settings: OptimizationConfig) -> str:
    section = "qat" if isinstance(settings, QatConfig) else "train"  # finetune follows qat's settings
    return f"{section}.learning_rate={settings.learning_rate:g}"


def _check_finite(losses: list[Tensor], settings: OptimizationConfig, curve: str, epoch: int, world: World) -> None:
    recent = world.mean(torch.stack(losses[-_REPORT_EVERY - 1 :]))
    wrong = (~recent.isfinite()).nonzero()
    if len(wrong):
        first = int(wrong[0])
        step = len(losses) - len(recent) + first + 1
        raise UserError(
            f"{curve}: the loss is {recent[first].item()} in epoch {epoch + 1}, step {step}: "
            f"{_rate(settings)} is likely too high"
        )
