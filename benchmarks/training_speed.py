"""How fast training is: a QAT step against a float step, and our loop against a plain one.

    python -m benchmarks.training_speed                 # ten minutes and more on a laptop: 224 px are slow
    python -m benchmarks.training_speed --quick         # a few rounds, small batches at 224 px, nothing compiled

Everything that is compared runs in one process, turn by turn, so that whatever else the machine does
falls on all of it alike. Trust the ratios, which are taken within each round, more than the speeds.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as functional
from PIL import Image
from scipy.stats import bootstrap
from tabulate import tabulate
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from pipeline import models
from pipeline.commands.composition import compose_request
from pipeline.datasets import catalogue
from pipeline.datasets.spec import Part
from pipeline.datasets.unmade import Unmade
from pipeline.flows import eager as quantization
from pipeline.flows.eager import flow, twins
from pipeline.host import environment
from pipeline.host.files import in_project
from pipeline.settings.config import Config, OptimizationConfig
from pipeline.tasks.classification import TASK
from pipeline.training import loop as training
from pipeline.training import optimization
from pipeline.training.compilation import CompiledForward
from pipeline.training.context import Context

_CPU = torch.device("cpu")
# The network that stands for each image size: the default one, and the post's own, which needs large images.
_MODELS = {32: "resnet18", 224: "blog_resnet18"}


@dataclass(frozen=True)
class Timed:
    """What was measured under one name: images a second, one number a round."""

    name: str
    speeds: list[float]


def main(arguments: list[str] | None = None) -> None:
    """Measure, print the tables and write them into a file."""
    options = _options(arguments)
    torch.set_num_threads(options.threads)
    quantization.silence_known_warnings()
    names = {32: options.batch_size, 224: 16 if options.quick else options.batch_size}
    tables = [_step_table(options.rounds, size, not options.quick) for size in options.step_batches]
    for size in options.sizes:
        tables.append(_loop_table(options.rounds, size, names[size], options.steps))
    machine = f"{environment.cpu_name()}, {options.threads} of its threads, torch {torch.__version__}"
    text = "\n\n".join(["# Training speed", machine, *tables]) + "\n"
    print(text)
    output = in_project(options.output)
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(text)


def _options(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.training_speed", description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, help="turns of each measurement (default: 20, quick: 5)")
    parser.add_argument("--quick", action="store_true", help="few rounds, batches of 16 at 224 px, nothing compiled")
    parser.add_argument("--batch-size", type=int, default=64, help="of the loops (default: 64, as in the post)")
    parser.add_argument("--step-batches", type=int, nargs="*", default=[64, 128], help="of the single steps")
    parser.add_argument("--sizes", type=int, nargs="*", default=[32, 224], choices=list(_MODELS), help="of the loops")
    parser.add_argument("--steps", type=int, default=3, help="timed steps of a loop in a round (default: 3)")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--output", default="outputs/benchmarks/training_speed.md")
    options = parser.parse_args(arguments)
    options.rounds = options.rounds or (5 if options.quick else 20)
    return options


def _config(image_size: int, samples: int) -> Config:
    """The real configuration of a training without augmentation, on MNIST where a mirror has it."""
    dataset = "mnist" if os.environ.get("DATASET_MIRROR") else "digits"
    overrides = [
        f"model={_MODELS[image_size]}",
        f"dataset={dataset}",
        f"dataset.image_size={image_size}",
        "dataset.crop_padding=0",
        f"dataset.max_train_samples={samples}",
        "train=adam_constant",
        "qat=adam_constant",
        # Faster on large images, slower on small ones, where reordering the weights costs more than it gains.
        f"train.channels_last={str(image_size > 64).lower()}",
        "train.epochs=1",
        "train.keep=last",
    ]
    return compose_request(overrides).config


# --- one QAT step against one float step


def _step_table(rounds: int, batch_size: int, compiled: bool) -> str:
    config = _config(32, 200)
    images = torch.randn(batch_size, 1, 32, 32, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(batch_size) % 10
    info = catalogue.info(config.dataset)
    kinds = [("float", False), ("QAT", False), *([("float", True)] if compiled else [])]
    steps: dict[str, Callable[[], float]] = {}
    torch.compiler.reset()
    for kind, compile_it in kinds:
        torch.manual_seed(0)
        model = models.build(config.model, info).train()
        if kind == "QAT":
            fused = quantization.rebuild("fused", twins.build(config.model, info))
            model = quantization.prepare(fused, config.backend)
        name = f"{kind}, compiled" if compile_it else f"{kind}, eager"
        steps[name] = _step(model, config.qat if kind == "QAT" else config.train, images, labels, compile_it)
    timed = _take_turns(steps, rounds, batch_size)
    pairs = [("QAT, eager", "float, eager")]
    if compiled:
        pairs.append(("float, compiled", "float, eager"))
    return _tables(f"One training step, resnet18 at 32 px, batch {batch_size}, {rounds} rounds", timed, pairs, True)


def _step(
    model: nn.Module, settings: OptimizationConfig, images: Tensor, labels: Tensor, compile_it: bool
) -> Callable[[], float]:
    forward = CompiledForward(model, "benchmark") if compile_it else model
    optimizer = optimization.make_optimizer(model, settings)

    def run() -> float:
        started = time.perf_counter()
        optimizer.zero_grad()
        functional.cross_entropy(forward(images), labels).backward()
        optimizer.step()
        return time.perf_counter() - started

    return run


# --- our loop against the post's


class PilImages(Dataset[tuple[Tensor, int]]):
    """As the post reads MNIST: one PIL image at a time through torchvision's transforms."""

    def __init__(self, part: Part, config: Config) -> None:
        from torchvision import transforms  # beside its operators, which pipeline.models has declared

        assert isinstance(part.pixels, Unmade)
        self._images = [Image.fromarray(pixels[0]) for pixels in part.pixels.sources]
        self._labels = part.labels.tolist()
        size = config.dataset.image_size
        normalize = transforms.Normalize(config.dataset.mean, config.dataset.std)
        self._transform = transforms.Compose([transforms.Resize((size, size)), transforms.ToTensor(), normalize])

    def __len__(self) -> int:
        return len(self._labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self._transform(self._images[index]), self._labels[index]


def _loop_table(rounds: int, image_size: int, batch_size: int, steps: int) -> str:
    # The validation part, a tenth and at least one image a class, lies outside the timed steps.
    needed = (steps + 2) * batch_size
    config = _config(image_size, max(200, int(needed / 0.9) + 10))
    config.train.batch_size = batch_size
    info = catalogue.info(config.dataset)
    training_part, validation = catalogue.load_training(config.dataset)
    training_part = training_part.select(np.arange(needed))
    torch.manual_seed(0)
    plain = models.build(config.model, info)

    def our_loop(precision: str) -> Callable[[], float]:
        settings = dataclasses.replace(config, train=dataclasses.replace(config.train, precision=precision))
        ours = models.build(config.model, info)
        ours.load_state_dict(plain.state_dict())
        return lambda: _timed_steps(lambda note: _fit(ours, settings, training_part, validation, note))

    loader = DataLoader(PilImages(training_part, config), batch_size=batch_size, shuffle=True, drop_last=True)
    optimizer = torch.optim.Adam(plain.parameters(), lr=config.train.learning_rate)

    def plain_loop() -> float:
        return _timed_steps(lambda note: _train_plainly(plain, optimizer, loader, note))

    loops = {"our loop": our_loop("fp32"), "our loop, bf16": our_loop("bf16"), "plain loop": plain_loop}
    timed = _take_turns(loops, rounds, batch_size)
    title = f"Training loop, {_MODELS[image_size]} at {image_size} px, batch {batch_size}, {rounds} rounds"
    return _tables(title, timed, [(name, "plain loop") for name in loops if name != "plain loop"], False)


def _fit(model: nn.Module, config: Config, part: Part, validation: Part, note: Callable[[], None]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        context = Context(
            folder=Path(folder),
            device=_CPU,
            info=catalogue.info(config.dataset),
            load_training=lambda: (part, validation.select(np.arange(10))),
            load_test=lambda: part,
            flow=flow,
            task=TASK,
        )
        training.fit(model, config.train, config.dataset, 0, context, "train", lambda model, done: note())


def _train_plainly(
    model: nn.Module, optimizer: torch.optim.Optimizer, loader: DataLoader[tuple[Tensor, int]], note: Callable[[], None]
) -> None:
    """The post's loop: forward, loss, backward, step, and the loss added up."""
    criterion, running_loss = nn.CrossEntropyLoss(), 0.0
    model.train()
    for images, labels in loader:
        note()
        optimizer.zero_grad()
        loss = criterion(model(images), labels)
        loss.backward()
        optimizer.step()
        running_loss += loss.item()


def _timed_steps(loop: Callable[[Callable[[], None]], None]) -> float:
    """Seconds a step of `loop`, which notes each step's begin; the first step, which warms up, is left out."""
    begun: list[float] = []
    loop(lambda: begun.append(time.perf_counter()))
    return (begun[-1] - begun[1]) / (len(begun) - 2)


# --- rounds and tables


def _take_turns(measured: dict[str, Callable[[], float]], rounds: int, batch_size: int) -> list[Timed]:
    """Each in turn, `rounds` times, the order reversed in every other round, after one round to warm up."""
    for run in measured.values():
        run()
    speeds: dict[str, list[float]] = {name: [] for name in measured}
    for _, names in zip(range(rounds), _orders(list(measured)), strict=False):
        for name in names:
            speeds[name].append(batch_size / measured[name]())
    return [Timed(name, values) for name, values in speeds.items()]


def _orders(names: list[str]) -> Iterator[list[str]]:
    return itertools.cycle([names, names[::-1]])


def _median_interval(values: list[float]) -> tuple[float, float, float]:
    """The median with its 95 % interval by the percentile bootstrap (Efron and Tibshirani 1993, chapter 13)."""
    middle = float(np.median(values))
    if len(set(values)) < 2:
        return middle, middle, middle
    found = bootstrap((values,), np.median, method="percentile", rng=np.random.default_rng(0)).confidence_interval
    return middle, float(found.low), float(found.high)


def _tables(title: str, timed: list[Timed], pairs: list[tuple[str, str]], in_time: bool) -> str:
    """Speeds, and ratios of paired rounds: of times (a step that takes longer) or of speeds (a faster loop)."""
    rows = [(each.name, *_median_interval(each.speeds)) for each in timed]
    speeds = tabulate(
        [(name, f"{middle:.1f}", f"{low:.1f} – {high:.1f}") for name, middle, low, high in rows],
        headers=["", "images a second", "95 % interval"],
        tablefmt="github",
        disable_numparse=True,
    )
    by_name = {each.name: each.speeds for each in timed}
    ratios = []
    for first, second in pairs:
        upper, lower = (second, first) if in_time else (first, second)
        paired = [one / other for one, other in zip(by_name[upper], by_name[lower], strict=True)]
        middle, low, high = _median_interval(paired)
        what = "takes, times" if in_time else "as fast, times"
        ratios.append((f"{first} against {second}: {what}", f"{middle:.2f}", f"{low:.2f} – {high:.2f}"))
    compared = tabulate(ratios, headers=["", "median ratio", "95 % interval"], tablefmt="github", disable_numparse=True)
    return f"## {title}\n\n{speeds}\n\n{compared}"


if __name__ == "__main__":
    main()
