"""Batches of images: chosen, moved, resized, augmented and normalized as a whole.

Where the pixels come from, memory or files, is the part's affair (`Part.batches`); what is done to them is the
same, here, in the main process.

One image at a time through PIL costs more than a small network's forward pass; a batch at a time on
the training device costs next to nothing.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Generator

import torch
import torch.nn.functional as functional
from torch import Tensor

from pipeline.config import DatasetConfig
from pipeline.datasets.spec import Part


def count_batches(part: Part, batch_size: int, training: bool) -> int:
    """How many batches an epoch has."""
    if training:
        return max(1, len(part) // batch_size)
    return math.ceil(len(part) / batch_size)


def training_batches(
    part: Part, config: DatasetConfig, batch_size: int, device: torch.device, generator: torch.Generator
) -> Generator[tuple[Tensor, Tensor], None, None]:
    """One epoch in random order, augmented: images float (B, C, S, S) and labels int64 (B) on `device`.

    An incomplete last batch is left out, so that every step sees as many images. `generator` (on the
    CPU) decides order and augmentation: the same state gives the same epoch.
    """
    order = torch.randperm(len(part), generator=generator)
    count = count_batches(part, batch_size, training=True)
    chosen = [order[index * batch_size : (index + 1) * batch_size] for index in range(count)]
    with contextlib.closing(part.batches(chosen, device)) as fetched:
        for indices, pixels in zip(chosen, fetched, strict=True):
            images = _augment(_resize(pixels, config.image_size), config, generator)
            yield _normalize(images, config), part.labels[indices].to(device)


def evaluation_batches(
    part: Part, config: DatasetConfig, batch_size: int, device: torch.device
) -> Generator[tuple[Tensor, Tensor], None, None]:
    """Every image once, in order: images float (B, C, S, S) and labels int64 (B) on `device`."""
    chosen = torch.arange(len(part)).split(batch_size)
    with contextlib.closing(part.batches(chosen, device)) as fetched:
        for indices, pixels in zip(chosen, fetched, strict=True):
            yield _normalize(_resize(pixels, config.image_size), config), part.labels[indices].to(device)


def _resize(pixels: Tensor, size: int) -> Tensor:
    images = pixels.float()
    if images.shape[-2:] == (size, size):
        return images
    return functional.interpolate(images, (size, size), mode="bilinear", antialias=True)


def _augment(images: Tensor, config: DatasetConfig, generator: torch.Generator) -> Tensor:
    count, size = len(images), config.image_size
    if config.crop_padding:
        # A random window of the padded image, one offset an image, in one gather.
        padding = config.crop_padding
        padded = functional.pad(images, (padding,) * 4)
        offsets = torch.randint(0, 2 * padding + 1, (2, count, 1), generator=generator)
        rows, columns = (offsets + torch.arange(size)).to(images.device)
        batch = torch.arange(count, device=images.device).view(-1, 1, 1)
        # Advanced indices around a slice: the channel axis comes last and is moved back.
        images = padded[batch, :, rows[:, :, None], columns[:, None, :]].movedim(-1, 1).contiguous()
    if config.horizontal_flip:
        flipped = (torch.rand(count, generator=generator) < 0.5).to(images.device)
        images = torch.where(flipped.view(-1, 1, 1, 1), images.flip(-1), images)
    return images


def _normalize(images: Tensor, config: DatasetConfig) -> Tensor:
    mean = images.new_tensor(config.mean).view(1, -1, 1, 1)
    std = images.new_tensor(config.std).view(1, -1, 1, 1)
    return (images / 255 - mean) / std
