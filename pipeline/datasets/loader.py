"""Batches of images: chosen, moved, augmented and normalized as a whole.

Where the pixels come from, prepared, is the part's affair (`Part.batches`); what is done to them is the same, here,
in the main process. A batch at a time on the training device costs next to nothing.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Generator

import torch
import torch.nn.functional as functional
from torch import Tensor

from pipeline.datasets.spec import Part
from pipeline.host.world import SOLO, World
from pipeline.settings.config import DatasetConfig

# Changes images and their labels together: `crop_and_flip`, or what a task has in its place.
Augment = Callable[[Tensor, Tensor, DatasetConfig, int, slice, torch.Generator], tuple[Tensor, Tensor]]


def count_batches(part: Part, batch_size: int, training: bool) -> int:
    """How many batches an epoch has."""
    if training:
        return max(1, len(part) // batch_size)
    return math.ceil(len(part) / batch_size)


def crop_and_flip(
    images: Tensor, labels: Tensor, config: DatasetConfig, count: int, mine: slice, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Move the windows of images, uint8 (B, C, S, S), and mirror some, as `config` says; labels stay.

    Drawn for the `count` images of the whole batch, of which these are `mine`.
    """
    padding = config.crop_padding
    if padding:
        offsets = torch.randint(0, 2 * padding + 1, (2, count, 1), generator=generator)
        # A random window of the padded image, one offset an image, in one gather.
        padded = functional.pad(images, (padding,) * 4)
        rows, columns = (offsets[:, mine] + torch.arange(config.image_size)).to(images.device)
        batch = torch.arange(len(images), device=images.device).view(-1, 1, 1)
        # Advanced indices around a slice: the channel axis comes last and is moved back. `contiguous` would let a lone
        # channel stay, and torch take images for channels-last: a 1×1 convolution with stride 2 then crashes.
        moved = padded[batch, :, rows[:, :, None], columns[:, None, :]].movedim(-1, 1)
        images = moved.clone(memory_format=torch.contiguous_format)
    if config.horizontal_flip:
        flipped = (torch.rand(count, generator=generator) < 0.5)[mine].to(images.device)
        images = torch.where(flipped.view(-1, 1, 1, 1), images.flip(-1), images)
    return images, labels


def training_batches(
    part: Part,
    config: DatasetConfig,
    batch_size: int,
    device: torch.device,
    generator: torch.Generator,
    world: World = SOLO,
    augment: Augment = crop_and_flip,
) -> Generator[tuple[Tensor, Tensor], None, None]:
    """One epoch in random order, augmented: images float (B, C, S, S) and labels int64 (B) on `device`.

    An incomplete last batch is left out, so that every step sees as many images. `generator` (on the
    CPU) decides order and augmentation: the same state gives the same epoch. Each process of `world` gets its share
    of every batch, as one process would have it.
    """
    order = torch.randperm(len(part), generator=generator)
    count = count_batches(part, batch_size, training=True)
    batches = [order[index * batch_size : (index + 1) * batch_size] for index in range(count)]
    shares = [world.share(len(batch)) for batch in batches]
    chosen = [batch[mine] for batch, mine in zip(batches, shares, strict=True)]
    with contextlib.closing(part.batches(chosen, device)) as fetched:
        for batch, mine, indices, pixels in zip(batches, shares, chosen, fetched, strict=True):
            labels = part.labels[indices].to(device)
            images, labels = augment(pixels, labels, config, len(batch), mine, generator)
            yield _normalize(images, config), labels


def evaluation_batches(
    part: Part, config: DatasetConfig, batch_size: int, device: torch.device, as_pictures: bool = False
) -> Generator[tuple[Tensor, Tensor], None, None]:
    """Every image once, in order: images float (B, C, S, S) and labels int64 (B) on `device`.

    Args:
        as_pictures: as decoders give them instead: uint8 (B, S, S, C).
    """
    chosen = torch.arange(len(part)).split(batch_size)
    with contextlib.closing(part.batches(chosen, device)) as fetched:
        for indices, pixels in zip(chosen, fetched, strict=True):
            images = pixels.permute(0, 2, 3, 1).contiguous() if as_pictures else _normalize(pixels, config)
            yield images, part.labels[indices].to(device)


def _normalize(pixels: Tensor, config: DatasetConfig) -> Tensor:
    """`Preprocessing.model_input` of a batch, uint8 (B, C, S, S), on its device, bit for bit."""
    if pixels.is_floating_point():  # the user's own transforms have
        return pixels
    images = pixels.float()
    mean = images.new_tensor(config.mean).view(1, -1, 1, 1)
    std = images.new_tensor(config.std).view(1, -1, 1, 1)
    # A divisor that lies on the device: by a plain number CUDA would multiply by its reciprocal.
    return (images / images.new_tensor(255) - mean) / std
