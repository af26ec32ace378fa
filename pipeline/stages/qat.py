"""Quantization-aware training: prepare the fused model for the backend, and train it with its own schedule.

After each epoch a converted copy is evaluated beside the fake-quantized model: the copy's accuracy is that
of the model that will run, and decides which epoch is kept.
"""

from __future__ import annotations

import copy

import torch
from torch import nn

from pipeline import forms, optimization, quantization, training
from pipeline.calibration import calibrate
from pipeline.config import Config, QatConfig
from pipeline.datasets.spec import Part
from pipeline.distillation import distillation_loss
from pipeline.stage import Context, Inputs, Stage


def run(config: Config, inputs: Inputs, context: Context) -> None:
    fused = forms.load("fused", inputs["fused"], config, context.info)
    model = quantization.prepare(fused, config.backend)
    if config.qat.init == "ptq":
        _take_ranges(model, config, context)
    if config.qat.compile:
        quantization.size_ranges(model)

    def before_step(model: nn.Module, epochs_done: float) -> None:
        freeze_on_schedule(model, epochs_done, config.qat)

    def validate_converted(model: nn.Module, validation: Part) -> dict[str, float]:
        return {"val_int8_accuracy_pct": converted_accuracy_pct(model, validation, config, context)}

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
    )
    context.save_model(model.cpu())


def converted_accuracy_pct(model: nn.Module, validation: Part, config: Config, context: Context) -> float:
    """The accuracy of `model` if it were converted now, on the CPU; the model itself stays as it is."""
    with torch.random.fork_rng(devices=[]):  # building modules may draw random numbers
        int8 = quantization.convert(copy.deepcopy(model), config.backend)
    size, machine = config.qat.batch_size, context.machine
    predicted = training.predict(
        int8, validation, config.dataset, size, torch.device("cpu"), "validate int8", machine, context.world
    )
    return training.accuracy_pct(predicted, validation)


def _take_ranges(model: nn.Module, config: Config, context: Context) -> None:
    """Begin with the ranges of post-training quantization instead of those of the first batches."""
    images, _ = context.load_training()
    samples, size = config.ptq.calibration_samples, config.ptq.batch_size
    calibrate(model, images, config.dataset, samples, config.seed, size, context.device, context.machine)


def _distillation(config: Config, inputs: Inputs, context: Context) -> training.Loss | None:
    if config.qat.distill_weight == 0:
        return None
    teacher = forms.load("float", inputs["float"], config, context.info).to(context.device)
    settings = config.qat
    return distillation_loss(teacher, settings.distill_weight, settings.distill_temperature, settings.label_smoothing)


def freeze_on_schedule(model: nn.Module, epochs_done: float, settings: QatConfig) -> None:
    """Freeze BatchNorm statistics and quantization ranges once their epochs have come.

    It is asked before every step and depends on `epochs_done` alone, because a resumed run must find
    its way too: frozen BatchNorm is no part of a `state_dict`.
    """
    if settings.freeze_bn_epoch is not None and epochs_done >= settings.freeze_bn_epoch:
        quantization.freeze_batch_norm(model)
    if settings.freeze_observer_epoch is not None and epochs_done >= settings.freeze_observer_epoch:
        quantization.freeze_observers(model)


STAGE = Stage(
    name="qat",
    run=run,
    sections=("model", "dataset", "backend", "fuse", "qat", "seed", "device"),
    also_reads=lambda config: ("ptq",) if config.qat.init == "ptq" else (),
    consumes=("fused",),
    also_consumes=lambda config: ("float",) if config.qat.distill_weight else (),
    produces="qat",
    ignores=("dataset.max_test_samples", "ptq.observer"),
    parts=("train",),
    trains=True,
    version=3,
    extends=("qat", "epochs"),
    is_open_ended=lambda config: optimization.is_open_ended(config.qat),
)
