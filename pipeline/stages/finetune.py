"""The control of QAT: the float model trained on exactly as QAT trains, without quantization.

QAT trains for more epochs, which alone may gain accuracy. Against this model, what int8 has over or under
is quantization's doing.
"""

from __future__ import annotations

import torch
from torch import nn

from pipeline.flows import forms
from pipeline.settings.config import Config
from pipeline.stages.contract import Inputs, Stage
from pipeline.training import loop as training
from pipeline.training import optimization
from pipeline.training.context import Context


def run(config: Config, inputs: Inputs, context: Context) -> None:
    model = forms.load("float", inputs["float"], config, context.info)
    freeze_epoch = config.qat.freeze_bn_epoch

    def before_step(model: nn.Module, epochs_done: float) -> None:
        if freeze_epoch is not None and epochs_done >= freeze_epoch:
            freeze_batch_norm(model)

    seed = config.seed if config.qat.seed is None else config.qat.seed
    training.fit(model, config.qat, config.dataset, seed, context, "finetune", before_step)
    context.save_model(model.cpu().to(memory_format=torch.contiguous_format))  # type: ignore[call-overload]


def freeze_batch_norm(model: nn.Module) -> None:
    """Normalize by the running statistics from here to the epoch's end, as QAT's frozen BatchNorm does.

    Its weight and bias go on learning, there as here.
    """
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval()


STAGE = Stage(
    name="finetune",
    run=run,
    # Without the backend: a sweep over backends fine-tunes once.
    sections=("task", "model", "dataset", "qat", "seed", "device"),
    consumes=("float",),
    produces="float_finetuned",
    # Observers are quantization's alone, and this model learns from the targets alone.
    ignores=(
        "dataset.max_test_samples",
        "model.quantizable_target",
        "qat.freeze_observer_epoch",
        "qat.init",
        "qat.distill_weight",
        "qat.distill_temperature",
    ),
    parts=("train",),
    trains=True,
    extends=("qat", "epochs"),
    is_open_ended=lambda config: optimization.is_open_ended(config.qat),
)
