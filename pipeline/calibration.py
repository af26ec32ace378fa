"""Calibration: what the observers of a prepared model see before ranges are taken from them."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

from pipeline import terminal
from pipeline.config import DatasetConfig
from pipeline.datasets.loader import count_batches, evaluation_batches
from pipeline.datasets.spec import Part
from pipeline.machine import Machine
from pipeline.quantization import fake_quantize_off


def choose(part: Part, samples: int, seed: int) -> Part:
    """At most `samples` images of a part, chosen at random by `seed`, in random order.

    The order matters to moving averages, and images of a folder come class by class.
    """
    return part.select(np.random.default_rng(seed).permutation(len(part))[:samples])


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
