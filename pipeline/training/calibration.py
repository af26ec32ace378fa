"""Calibration: what the observers of a prepared model see before ranges are taken from them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import nn

from pipeline.datasets.loader import count_batches, evaluation_batches
from pipeline.datasets.spec import Part
from pipeline.flows import eager as quantization
from pipeline.flows import forms
from pipeline.flows.eager import fake_quantize_off
from pipeline.host import terminal
from pipeline.host.machine import Machine
from pipeline.settings.config import Config, DatasetConfig
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
        twin = forms.load_float_into_twin(checkpoint, config, context.info)
        prepared = quantization.prepare_ptq(twin, config.backend, config.ptq.observer)
    training, _ = context.load_training()
    samples, size = config.ptq.calibration_samples, config.ptq.batch_size
    calibrate(prepared, training, config.dataset, samples, config.seed, size, context.device, context.machine)
    return prepared


@torch.no_grad()  # not inference_mode: a model may train on from these ranges
def calibrate(
    model: nn.Module,
    training: Part,
    dataset: DatasetConfig,
    samples: int,
    seed: int,
    batch_size: int,
    device: torch.device,
    machine: Machine,
) -> None:
    """Show the observers of a prepared model, PTQ's or QAT's, `samples` training images.

    The images are not augmented, BatchNorm normalizes by its running statistics, and fake-quantize
    modules, where there are any, only observe: the ranges are those of the float activations. Leaves
    the model in evaluation mode on `device`.

    Args:
        training: the training part, without the validation part.
    """
    part = choose(training, samples, seed)
    model.to(device).eval()
    with fake_quantize_off(model), terminal.bar("calibrate", count_batches(part, batch_size, training=False)) as bar:
        for images, _ in evaluation_batches(part, dataset, batch_size, device):
            with machine.computing():
                model(images)
            bar.update(1)
