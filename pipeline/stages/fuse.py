"""Fuse Conv+BN+ReLU: for QAT trainable, the BatchNorm kept beside its convolution (`fuse.mode=train`)."""

from __future__ import annotations

from pipeline.flows import eager as quantization
from pipeline.flows import forms
from pipeline.settings.config import Config
from pipeline.stages.contract import Inputs, Stage
from pipeline.training.context import Context


def run(config: Config, inputs: Inputs, context: Context) -> None:
    with context.machine.computing():
        twin = forms.load_float_into_twin(inputs["float"], config, context.info)
        fused = quantization.fuse(twin, config.fuse.mode)
    context.save_model(fused)


STAGE = Stage(name="fuse", run=run, sections=("model", "fuse"), consumes=("float",), produces="fused")
