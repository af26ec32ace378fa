"""Train the float model, or take `model.weights` as they are when `train.epochs=0`."""

from __future__ import annotations

import torch

from pipeline import models
from pipeline.host import terminal
from pipeline.models import weights
from pipeline.settings.config import Config
from pipeline.stages.contract import Inputs, Stage
from pipeline.training import loop as training
from pipeline.training import optimization
from pipeline.training.context import Context


def run(config: Config, inputs: Inputs, context: Context) -> None:
    torch.manual_seed(config.seed)
    model = models.build(config.model, context.info)
    if config.model.weights is not None:
        fresh, told = weights.load_into(model, config.model, context.info)
        if told:
            terminal.say(f"  model.weights={config.model.weights}: {told}")
        if fresh:
            terminal.warn(f"model.weights: {', '.join(fresh)} do not fit the data set and start untrained")
    if config.train.epochs > 0:
        training.fit(model, config.train, config.dataset, config.seed, context, curve="train")
    # An artifact has one memory layout, whatever training used.
    context.save_model(model.cpu().to(memory_format=torch.contiguous_format))  # type: ignore[call-overload]


STAGE = Stage(
    name="train",
    run=run,
    sections=("task", "model", "dataset", "train", "seed", "device"),
    produces="float",
    ignores=("dataset.max_test_samples", "model.quantizable_target"),
    parts=("train",),
    trains=True,
    extends=("train", "epochs"),
    is_open_ended=lambda config: optimization.is_open_ended(config.train),
)
