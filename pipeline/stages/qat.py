"""Quantization-aware training: prepare the fused model for the backend, and train it with its own schedule."""

from __future__ import annotations

from torch import nn

from pipeline import forms, quantization, training
from pipeline.config import Config, QatConfig
from pipeline.stage import Context, Inputs, Stage


def run(config: Config, inputs: Inputs, context: Context) -> None:
    fused = forms.load("fused", inputs["fused"], config, context.info)
    model = quantization.prepare(fused, config.backend)

    def before_step(model: nn.Module, epochs_done: float) -> None:
        freeze_on_schedule(model, epochs_done, config.qat)

    training.fit(model, config.qat, config.dataset, config.seed, context, "qat", before_step)
    context.save_model(model.cpu())


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
    consumes=("fused",),
    produces="qat",
    ignores=("dataset.max_test_samples",),
    parts=("train",),
    extends=("qat", "epochs"),
    is_open_ended=lambda config: training.is_open_ended(config.qat),
)
