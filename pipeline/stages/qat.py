"""Quantization-aware training: prepare the fused model for the backend, and train it with its own schedule.

After each epoch a converted copy is evaluated beside the fake-quantized model: what the copy is worth is what the
model that will run is worth, and decides which epoch is kept. With `qat.init=ptq` training begins from post-training
quantization, whose model is a candidate too: what is kept is never worse than it on the validation part.
"""

from __future__ import annotations

import copy
import time
from pathlib import Path

import torch
from torch import Tensor, nn

from pipeline.datasets.spec import Part
from pipeline.flows import forms
from pipeline.flows.contract import Flow
from pipeline.measure.pairs import difference
from pipeline.settings.config import Config, QatConfig
from pipeline.stages.contract import Inputs, Stage
from pipeline.training import loop as training
from pipeline.training import optimization
from pipeline.training.calibration import calibrate, calibrated
from pipeline.training.context import Context
from pipeline.training.distillation import distillation_loss


def run(config: Config, inputs: Inputs, context: Context) -> None:
    fused = forms.load("fused", inputs["fused"], config, context.info)
    model = context.flow.prepare(fused, config)
    _, validation = context.load_training()
    task, start, seconds = context.task, None, 0.0
    if config.qat.init == "ptq":
        started = time.perf_counter()
        _begin_from_ptq(model, inputs["float"], config, context)
        seconds = time.perf_counter() - started
        start = _predict_converted(model, config, context)

    def before_step(model: nn.Module, epochs_done: float) -> None:
        freeze_on_schedule(model, epochs_done, config.qat, context.flow)

    def validate_converted(model: nn.Module, validation: Part) -> dict[str, float]:
        decided = _predict_converted(model, config, context)
        return {f"val_int8_{task.primary.name}": task.value(decided, validation.labels)}

    training.fit(
        model,
        config.qat,
        config.dataset,
        config.seed if config.qat.seed is None else config.qat.seed,
        context,
        "qat",
        before_step,
        _distillation(config, inputs, context),
        validate_converted,
        None if start is None else task.value(start, validation.labels),
        context.flow,
    )
    if start is not None:
        _compare_with_start(start, _predict_converted(model, config, context), validation, context)
        context.metric("qat/start_seconds", seconds)
    context.save_model(model.cpu())


def _predict_converted(model: nn.Module, config: Config, context: Context) -> Tensor:
    """What is decided on every validation image, (N, …), if `model` were converted now; the model stays as it is."""
    _, validation = context.load_training()
    with context.machine.computing(), torch.random.fork_rng(devices=[]):  # building modules may draw random numbers
        int8 = context.flow.convert(copy.deepcopy(model), config)
    flow, machine, size, cpu = context.flow, context.machine, config.qat.batch_size, torch.device("cpu")
    return training.predict(
        int8, validation, config.dataset, size, cpu, "validate int8", flow, machine, context.task, context.world
    )


def _begin_from_ptq(model: nn.Module, checkpoint: Path, config: Config, context: Context) -> None:
    """Begin with the ranges of post-training quantization instead of those of the first batches.

    Converted now, the model is that of the stage `ptq`, up to rounding. Where ranges cannot be given, the model's own
    observers see the calibration images.
    """
    if context.flow.takes_ranges(config):
        context.flow.take_ranges(model, calibrated(checkpoint, config, context))
    else:
        calibrate(model, config, context)


def _compare_with_start(start: Tensor, kept: Tensor, validation: Part, context: Context) -> None:
    """Report what training was worth: on the validation part, the kept int8 model against the one it began from."""
    task, targets = context.task, validation.labels
    metric = task.primary
    context.metric(f"qat/start_val_int8_{metric.name}", task.value(start, targets))
    context.metric(f"qat/kept_val_int8_{metric.name}", task.value(kept, targets))
    apart = difference(metric, task.score(kept, targets), task.score(start, targets))
    context.metric("qat/val_only_start_right", apart.lost)
    context.metric("qat/val_only_kept_right", apart.won)
    context.metric(f"qat/val_{metric.test}", apart.p)


def _distillation(config: Config, inputs: Inputs, context: Context) -> training.Loss | None:
    if config.qat.distill_weight == 0:
        return None
    teacher = forms.load("float", inputs["float"], config, context.info).to(context.device)
    settings = config.qat
    weight, temperature = settings.distill_weight, settings.distill_temperature
    return distillation_loss(context.task, teacher, weight, temperature, settings.label_smoothing)


def freeze_on_schedule(model: nn.Module, epochs_done: float, settings: QatConfig, flow: Flow) -> None:
    """Freeze BatchNorm statistics and quantization ranges once their epochs have come.

    It is asked before every step and depends on `epochs_done` alone, because a resumed run must find
    its way too: frozen BatchNorm is no part of a `state_dict`.
    """

    def has_come(epoch: float | None) -> bool:
        return epoch is not None and epochs_done >= epoch

    flow.freeze(model, has_come(settings.freeze_bn_epoch), has_come(settings.freeze_observer_epoch))


STAGE = Stage(
    name="qat",
    run=run,
    sections=("task", "model", "dataset", "backend", "fuse", "qat", "seed", "device"),
    also_reads=lambda config: ("ptq",) if config.qat.init == "ptq" else (),
    consumes=("fused",),
    also_consumes=lambda config: ("float",) if config.qat.distill_weight or config.qat.init == "ptq" else (),
    produces="qat",
    ignores=("dataset.max_test_samples",),
    parts=("train",),
    trains=True,
    extends=("qat", "epochs"),
    is_open_ended=lambda config: optimization.is_open_ended(config.qat),
)
