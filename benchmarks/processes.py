"""Training on several processes against one: the loss of each step, what the ranks end with, and the speed.

    python -m benchmarks.processes                                  # MNIST, 2 processes of 1 thread against 1 of 2
    python -m benchmarks.processes --stage qat dataset=digits       # any overrides

The same seed and the same global batch. The launches take turns, so that whatever else the machine does falls on
all of them alike; trust the ratio, which is taken within each round.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as functional
from scipy.stats import bootstrap
from tabulate import tabulate
from torch import Tensor, nn

from pipeline import models
from pipeline.commands.composition import compose_request
from pipeline.datasets import catalogue
from pipeline.flows import eager as quantization
from pipeline.flows.eager import flow, twins
from pipeline.host import terminal, torchrun
from pipeline.host.files import PROJECT_ROOT
from pipeline.host.world import join
from pipeline.tasks.classification import TASK
from pipeline.training import loop as training
from pipeline.training.context import Context

_CPU = torch.device("cpu")
_STEPS = 50


def main() -> None:
    """Launch one process and several by turns, and print how they differ."""
    parser = argparse.ArgumentParser("python -m benchmarks.processes", description=__doc__.splitlines()[0])
    parser.add_argument("overrides", nargs="*", default=[], help="default: dataset=mnist")
    parser.add_argument("--stage", choices=["train", "qat"], default="train")
    parser.add_argument("--dtype", choices=["float32", "float64"], default="float32", help="of the arithmetic")
    parser.add_argument("--activation", choices=["relu", "softplus"], default="relu", help="softplus has no kink")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--threads", type=int, default=2, help="of the one process; each of several takes its share")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    if options.stage == "qat" and (options.activation, options.dtype) != ("relu", "float32"):
        parser.error("--stage qat: allowed: --activation relu, --dtype float32, for which fake-quantize is made")
    overrides = options.overrides or ["dataset=mnist"]
    kind = (options.stage, options.dtype, options.activation)
    rounds = []
    for number in range(options.rounds):
        launches = {"one": 1, "several": options.processes}
        measured = {
            name: _launch(processes, options.threads, kind, overrides)
            for name, processes in (launches.items() if number % 2 == 0 else reversed(launches.items()))
        }
        rounds.append(measured)
        print(f"round {number + 1} of {options.rounds} is done", file=sys.stderr, flush=True)
    again = _launch(1, 1, kind, overrides)
    _report(rounds, again, options)


def _launch(processes: int, threads: int, kind: tuple[str, str, str], overrides: list[str]) -> dict[str, Any]:
    """Train for some steps in so many processes that share the threads; what rank 0 wrote down."""
    with tempfile.TemporaryDirectory() as folder:
        result = Path(folder) / "result.json"
        module = ["benchmarks.processes", "worker", *kind, str(result), folder, *overrides]
        torchrun = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
        command = [sys.executable, *(torchrun if processes > 1 else []), "-m", *module]
        environment = os.environ | {"OMP_NUM_THREADS": str(max(1, threads // processes))}
        subprocess.run(command, cwd=PROJECT_ROOT, env=environment, check=True)
        return json.loads(result.read_text())


def _worker(stage: str, dtype: str, activation: str, result: str, folder: str, *overrides: str) -> None:
    config = compose_request([*overrides, "device=cpu"]).config
    quantization.silence_known_warnings()
    terminal.mute()
    info = catalogue.info(config.dataset)
    parts = catalogue.load_training(config.dataset)
    settings = config.train if stage == "train" else config.qat
    batch = settings.batch_size
    training_part = dataclasses.replace(parts[0])
    epochs = -(-_STEPS // max(1, len(training_part) // batch))
    torch.manual_seed(config.seed)
    if stage == "train":
        model = models.build(config.model, info)
        if activation == "softplus":
            _smooth(model)
    else:
        twin = twins.build(config.model, info)
        model = quantization.prepare(quantization.fuse(twin, config.fuse.mode), config.backend)
    settings = dataclasses.replace(settings, epochs=max(epochs, settings.epochs))
    if dtype == "float64":
        model.double().register_forward_pre_hook(lambda module, inputs: (inputs[0].double(),))
    losses: list[Tensor] = []
    times: list[float] = []

    def loss_of(images: Tensor, logits: Tensor, labels: Tensor) -> Tensor:
        if len(losses) == _STEPS:
            raise _Enough
        loss = functional.cross_entropy(logits, labels)
        losses.append(loss.detach())
        times.append(time.perf_counter())
        return loss

    with join(_CPU) as world:
        context = Context(Path(folder), _CPU, info, lambda: parts, lambda: parts[1], flow, TASK, world=world)
        with contextlib.suppress(_Enough):
            training.fit(model, settings, config.dataset, config.seed, context, stage, loss_of=loss_of)
        mean = [float(world.mean(loss)) for loss in losses]
        buffers = torch.cat([value.double().flatten() for value in model.state_dict().values()])
        spread = float((world.extremes(buffers, buffers)[1] - world.extremes(buffers, buffers)[0]).abs().max())
        if world.is_main:
            seconds = float(np.median(np.diff(times)))
            Path(result).write_text(json.dumps({"losses": mean, "spread": spread, "speed": batch / seconds}))


def _smooth(model: nn.Module) -> None:
    for parent in list(model.modules()):
        for name, child in parent.named_children():
            if isinstance(child, nn.ReLU):
                setattr(parent, name, nn.Softplus())


class _Enough(Exception):
    """As many steps as were asked for."""


def _report(rounds: list[dict[str, Any]], again: dict[str, Any], options: argparse.Namespace) -> None:
    one, several = ([each[name] for each in rounds] for name in ("one", "several"))
    differences = {
        f"{options.processes} processes": _differences(one[0], several[0]),
        "1 process of 1 thread": _differences(one[0], again),
    }
    print(f"\nstage {options.stage} in {options.dtype} with {options.activation}, the loss of each step:")
    rows = [
        [name, *(f"{values[: step + 1].max():.1e}" for step in (0, 9, 24, _STEPS - 1))]
        for name, values in differences.items()
    ]
    print(
        tabulate(
            rows,
            [
                f"largest difference from 1 process of {options.threads} threads",
                "step 1",
                "1 … 10",
                "1 … 25",
                f"1 … {_STEPS}",
            ],
        )
    )
    print(f"\nlargest difference between the ranks' state_dicts: {max(each['spread'] for each in several):g}")
    ratios = np.array([b["speed"] / a["speed"] for a, b in zip(one, several, strict=True)])
    interval = ""
    if len(ratios) > 2:
        low, high = bootstrap((ratios,), np.median, method="percentile", rng=0).confidence_interval
        interval = f" [{low:.2f}, {high:.2f}]"
    print(
        f"images a second: {np.median([each['speed'] for each in one]):.0f} with 1 process of {options.threads} "
        f"threads, {np.median([each['speed'] for each in several]):.0f} with {options.processes} processes: "
        f"ratio {np.median(ratios):.2f}{interval} (median of {len(ratios)} rounds)"
    )


def _differences(one: dict[str, Any], other: dict[str, Any]) -> np.ndarray:
    return np.abs(np.array(one["losses"]) - np.array(other["losses"]))


if __name__ == "__main__":
    if sys.argv[1:2] == ["worker"]:
        _worker(*sys.argv[2:])
        torchrun.leave()
    else:
        main()
