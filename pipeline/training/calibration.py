"""Calibration: what the observers of a prepared model see before ranges are taken from them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import nn

from pipeline.datasets.loader import count_batches, evaluation_batches
from pipeline.datasets.spec import Part
from pipeline.flows import forms
from pipeline.host import terminal
from pipeline.settings.config import Config
from pipeline.training.context import Context


def choose(part: Part, samples: int, seed: int) -> Part:
    """At most `samples` images of a part, chosen at random by `seed`, in random order.

    The order matters to moving averages, and images of a folder come class by class.
    """
    return part.select(np.random.default_rng(seed).permutation(len(part))[:samples])


def calibrated(checkpoint: Path, config: Config, context: Context) -> nn.Module:
    """The float model in `checkpoint` prepared for post-training quantization, its observers calibrated by `ptq.*`.

    Reads `config.model`, `backend`, `ptq`, `dataset` and `seed`. What is left to do is to convert it.
    """
    with context.machine.computing():
        model = forms.load("float", checkpoint, config, context.info)
        prepared = context.flow.prepare_ptq(model, config, context.info)
    calibrate(prepared, config, context)
    return prepared


@torch.no_grad()  # not inference_mode: a model may train on from these ranges
def calibrate(model: nn.Module, config: Config, context: Context) -> None:
    """Show the observers of a prepared model, PTQ's or QAT's, as many training images as `ptq.*` says.

    The images are not augmented, BatchNorm normalizes by its running statistics, and fake-quantize
    modules, where there are any, only observe: the ranges are those of the float activations. Leaves
    the model in evaluation mode on the context's device.
    """
    context.flow.set_mode(model.to(context.device), training=False)
    show_calibration_images(model, config, context, "calibrate")


@torch.no_grad()
def show_calibration_images(model: nn.Module, config: Config, context: Context, description: str) -> None:
    """Have a prepared model compute the calibration images in float."""
    training, _ = context.load_training()  # without the validation part
    part, size = choose(training, config.ptq.calibration_samples, config.seed), config.ptq.batch_size
    with (
        context.flow.fake_quantize_off(model),
        terminal.bar(description, count_batches(part, size, training=False)) as bar,
    ):
        for images, _ in evaluation_batches(part, config.dataset, size, context.device):
            with context.machine.computing():
                model(images)
            bar.update(1)
