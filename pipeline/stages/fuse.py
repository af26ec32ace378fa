"""Fuse Conv+BN+ReLU: for QAT trainable, the BatchNorm kept beside its convolution (`fuse.mode=train`)."""

from __future__ import annotations

from pipeline.flows import forms
from pipeline.settings.config import Config
from pipeline.stages.contract import Inputs, Stage
from pipeline.training.context import Context


def run(config: Config, inputs: Inputs, context: Context) -> None:
    with context.machine.computing():
        model = forms.load("float", inputs["float"], config, context.info)
        fused = context.flow.fuse(model, config, context.info)
    context.save_model(fused)


STAGE = Stage(name="fuse", run=run, sections=("model", "fuse"), consumes=("float",), produces="fused")
