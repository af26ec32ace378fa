"""Started by torchrun, or alone, by test_processes.py: trains a few steps and writes down what came out."""

from __future__ import annotations

import dataclasses
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as functional
from torch import Tensor

from pipeline import models
from pipeline.commands.composition import compose_request
from pipeline.datasets import catalogue
from pipeline.flows import eager as quantization
from pipeline.flows.eager import flow, twins
from pipeline.host import terminal, torchrun
from pipeline.host.world import World, join
from pipeline.settings.config import Config
from pipeline.tasks.classification import TASK
from pipeline.training import loop as training
from pipeline.training.context import Context


def main(result: Path) -> None:
    quantization.silence_known_warnings()
    terminal.mute()
    asked = ["dataset.max_train_samples=110", "dataset.crop_padding=4", "dataset.horizontal_flip=true"]
    config = compose_request(asked).config
    dropping = compose_request([*asked, "model=mobilenet_v2", "model.stem=small", "backend=qnnpack"]).config
    with join(torch.device("cpu")) as world:
        found = {stage: _train(stage, config, world) for stage in ("train", "qat")}
        found["dropout"] = _train("train", dropping, world)
        if world.is_main:
            result.write_text(json.dumps(found))


def _train(stage: str, config: Config, world: World) -> dict[str, Any]:
    device, info = torch.device("cpu"), catalogue.info(config.dataset)
    parts = catalogue.load_training(config.dataset)
    torch.manual_seed(config.seed)
    if stage == "train":
        model = models.build(config.model, info)
        # fake-quantize is made for float32 alone
        model.double().register_forward_pre_hook(lambda module, inputs: (inputs[0].double(),))
        settings = dataclasses.replace(config.train, epochs=2, batch_size=20)
    else:
        fused = quantization.fuse(twins.build(config.model, info), config.fuse.mode)
        model = quantization.prepare(fused, config.backend)
        settings = dataclasses.replace(config.qat, epochs=2, batch_size=20)
    losses: list[Tensor] = []
    ranges: list[float] = []

    def loss_of(images: Tensor, logits: Tensor, labels: Tensor) -> Tensor:
        if not losses:  # what the observers of activations saw in the first batch
            state = model.state_dict().items()
            ranges.extend(float(high) for name, high in state if name.endswith("max_val") and "weight" not in name)
        loss = functional.cross_entropy(logits, labels)
        losses.append(loss.detach())
        return loss

    with tempfile.TemporaryDirectory() as folder:
        context = Context(Path(folder), device, info, lambda: parts, lambda: parts[1], flow, TASK, world=world)
        training.fit(model, settings, config.dataset, config.seed, context, stage, loss_of=loss_of)
        files = len(list(Path(folder).iterdir()))
    state = torch.cat([value.double().flatten() for value in model.state_dict().values()])
    low, high = world.extremes(state, state)
    return {
        "losses": [float(world.mean(loss)) for loss in losses],
        "history": context.history,
        "ranges": ranges,
        "spread": float((high - low).abs().max()),
        "files_of_ranks": world.gather(torch.tensor([files])).tolist(),
    }


if __name__ == "__main__":
    main(Path(sys.argv[1]))
    torchrun.leave()
