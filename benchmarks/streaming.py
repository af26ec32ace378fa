"""How fast batches come from files, decoded by worker processes, against the same batches from memory.

    python -m benchmarks.streaming                          # 2,000 JPEGs of 256 px that it makes
    python -m benchmarks.streaming --train resnet18         # and with training steps of a network beside it

Both ways take turns in one process, so that whatever else the machine does falls on both alike. `batches alone` is
what the decoding can give; `with a training step` is what a training notices of it.
"""

from __future__ import annotations

import argparse
import dataclasses
import shlex
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as functional
from PIL import Image
from scipy.stats import bootstrap
from tabulate import tabulate
from torch import Tensor

from pipeline import models
from pipeline.commands.composition import compose_request
from pipeline.datasets import catalogue
from pipeline.datasets.loader import training_batches
from pipeline.datasets.spec import Part
from pipeline.host import environment
from pipeline.settings.config import Config
from pipeline.training import optimization

_CLASSES = ("cat", "dog")


def main(arguments: list[str] | None = None) -> None:
    """Make the folder, measure, print the table."""
    options = _options(arguments)
    torch.set_num_threads(options.threads)
    with tempfile.TemporaryDirectory() as made:
        _make_pictures(Path(made), options.images, options.file_px)
        config = _config(Path(made), options)
        parts = _parts(config)
        rows = [_measured("batches alone", parts, config, _take, options.rounds)]
        if options.train:
            few = np.arange(options.steps * options.batch_size)
            chosen = {name: part.select(few) for name, part in parts.items()}
            name = f"{options.steps} training steps of {options.train}"
            rows.append(_measured(name, chosen, config, _trainer(config), options.rounds))
    device, threads = environment.resolve_device(config.device), f"{options.threads} threads"
    where = f"{environment.cpu_name()}, training on {device} with {threads}, torch {torch.__version__}"
    what = f"{options.images} JPEGs of {options.file_px} px to {options.size} px, batches of {options.batch_size}"
    print(f"python -m benchmarks.streaming {shlex.join(sys.argv[1:] if arguments is None else arguments)}")
    print(f"{where}; {what}, {config.dataset.workers} workers, {options.rounds} rounds; medians, 95 % intervals\n")
    headers = ["", "memory, images a second", "streamed, images a second", "streamed / memory"]
    print(tabulate(rows, headers=headers, tablefmt="github", disable_numparse=True))


def _options(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.streaming", description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--file-px", type=int, default=256, help="height and width of the files")
    parser.add_argument("--size", type=int, default=224, help="dataset.image_size")
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="of the training")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--train", metavar="MODEL", help="measure a few training steps of it too")
    parser.add_argument("--steps", type=int, default=6, help="of a training in a round")
    return parser.parse_args(arguments)


def _make_pictures(root: Path, count: int, size: int) -> None:
    """Random pictures with some structure: noise alone is what no photograph costs to decode."""
    random = np.random.default_rng(0)
    for index in range(count):
        folder = root / _CLASSES[index % len(_CLASSES)]
        folder.mkdir(exist_ok=True)
        coarse = Image.fromarray(random.integers(0, 256, (size // 8, size // 8, 3), dtype=np.uint8))
        coarse.resize((size, size), Image.Resampling.BICUBIC).save(folder / f"{index:05}.jpg", quality=90)


def _config(root: Path, options: argparse.Namespace) -> Config:
    overrides = [
        *("dataset=image_folder", f"dataset.root={root}", f"dataset.image_size={options.size}"),
        *(f"dataset.workers={options.workers}", f"train.batch_size={options.batch_size}"),
        f"model={options.train or 'resnet18'}",
    ]
    return compose_request(overrides).config


def _parts(config: Config) -> dict[str, Part]:
    """The training part, by the way it is loaded."""
    loaded = {}
    for loading in ("memory", "stream"):
        loaded[loading], _ = catalogue.load_training(dataclasses.replace(config.dataset, loading=loading))
    return loaded


def _measured(
    name: str, parts: dict[str, Part], config: Config, consume: Callable[[Tensor, Tensor], None], rounds: int
) -> tuple[str, str, str, str]:
    speeds: dict[str, list[float]] = {loading: [] for loading in parts}
    for turn in range(rounds + 1):
        for loading in list(parts)[:: -1 if turn % 2 else 1]:
            speed = _speed(parts[loading], config, consume)
            if turn:  # the first warms up
                speeds[loading].append(speed)
    ratios = [streamed / memory for streamed, memory in zip(speeds["stream"], speeds["memory"], strict=True)]
    return name, _interval(speeds["memory"], 0), _interval(speeds["stream"], 0), _interval(ratios, 3)


def _speed(part: Part, config: Config, consume: Callable[[Tensor, Tensor], None]) -> float:
    """Images a second of one epoch, the start of its workers included."""
    started, seen = time.perf_counter(), 0
    generator = torch.Generator().manual_seed(0)
    device = environment.resolve_device(config.device)
    for images, labels in training_batches(part, config.dataset, config.train.batch_size, device, generator):
        consume(images, labels)
        seen += len(labels)
    return seen / (time.perf_counter() - started)


def _take(images: Tensor, labels: Tensor) -> None:
    float(images[0, 0, 0, 0])  # waits for the device


def _trainer(config: Config) -> Callable[[Tensor, Tensor], None]:
    device = environment.resolve_device(config.device)
    model = models.build(config.model, catalogue.info(config.dataset)).to(device).train()
    optimizer = optimization.make_optimizer(model, config.train)

    def step(images: Tensor, labels: Tensor) -> None:
        loss = functional.cross_entropy(model(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        float(loss.detach())

    return step


def _interval(values: list[float], digits: int) -> str:
    """The median with its 95 % interval by the percentile bootstrap (Efron and Tibshirani 1993, chapter 13)."""
    middle = float(np.median(values))
    if len(set(values)) < 2:
        return f"{middle:.{digits}f}"
    found = bootstrap((values,), np.median, method="percentile", rng=np.random.default_rng(0)).confidence_interval
    return f"{middle:.{digits}f} ({found.low:.{digits}f} – {found.high:.{digits}f})"


if __name__ == "__main__":
    main()
