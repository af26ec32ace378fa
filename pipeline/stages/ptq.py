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
from pipeline.training.calibration import calibrate, calibrated
from pipeline.training.context import Context


def run(config: Config, inputs: Inputs, context: Context) -> None:
    context.load_training()  # reading images is no part of what quantization takes
    started = time.perf_counter()
    if config.ptq.bias_correction:
        with context.machine.computing():
            model = forms.load("float", inputs["float"], config, context.info)
            prepared = context.flow.prepare_simulation(model, config, context.info)
        calibrate(prepared, config, context)
        with context.flow.observers_off(prepared):
            correct_biases(prepared, config, context)
    else:
        prepared = calibrated(inputs["float"], config, context)
    with context.machine.computing():
        int8 = context.flow.convert(prepared, config)
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
