"""Post-training static quantization: fold the BatchNorm, calibrate observers on training images, convert.

The control of QAT: the same float model, backend and engine, and not one step of training (Krishnamoorthi
2018, "Quantizing deep convolutional networks for efficient inference", section 3.2).
"""

from __future__ import annotations

import time

from pipeline.flows import forms
from pipeline.settings.config import Config
from pipeline.stages.contract import Inputs, Stage
from pipeline.training.bias_correction import correct_biases
from pipeline.training.calibration import calibrate
from pipeline.training.context import Context
from pipeline.training.smooth_quant import smooth


def run(config: Config, inputs: Inputs, context: Context) -> None:
    context.load_training()  # reading images is no part of what quantization takes
    started, flow, settings = time.perf_counter(), context.flow, config.ptq
    with context.machine.computing():
        model = forms.load("float", inputs["float"], config, context.info)
    if settings.smooth_quant is not None:
        smooth(model, settings.smooth_quant, config, context)
    with context.machine.computing():
        prepare = flow.prepare_simulation if settings.bias_correction else flow.prepare_ptq
        prepared = prepare(model, config, context.info)
    calibrate(prepared, config, context)
    if settings.bias_correction:
        with flow.observers_off(prepared):
            correct_biases(prepared, config, context)
    with context.machine.computing():
        int8 = flow.convert(prepared, config)
    context.metric("ptq/seconds", time.perf_counter() - started)
    context.save_model(int8)


STAGE = Stage(
    name="ptq",
    run=run,
    sections=("model", "dataset", "backend", "ptq", "seed", "device"),
    consumes=("float",),
    produces="ptq_int8",
    ignores=("dataset.max_test_samples", "dataset.crop_padding", "dataset.horizontal_flip", "backend.fake_quantize"),
    parts=("train",),
)
