"""Convert the trained QAT model to int8, on the CPU, with the backend's engine set."""

from __future__ import annotations

from pipeline.flows import forms
from pipeline.settings.config import Config
from pipeline.stages.contract import Inputs, Stage
from pipeline.training.context import Context


def run(config: Config, inputs: Inputs, context: Context) -> None:
    with context.machine.computing():
        prepared = forms.load("qat", inputs["qat"], config, context.info)
        int8 = context.flow.convert(prepared, config)
    context.save_model(int8)


STAGE = Stage(name="convert", run=run, sections=("model", "backend", "fuse"), consumes=("qat",), produces="int8")
