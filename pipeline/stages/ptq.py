"""Post-training static quantization: fold the BatchNorm, calibrate observers on training images, convert.

The control of QAT: the same float model, backend and engine, and not one step of training (Krishnamoorthi
2018, "Quantizing deep convolutional networks for efficient inference", section 3.2).
"""

from __future__ import annotations

from pipeline import forms, quantization
from pipeline.calibration import calibrate
from pipeline.config import Config
from pipeline.stage import Context, Inputs, Stage


def run(config: Config, inputs: Inputs, context: Context) -> None:
    with context.machine.computing():
        twin = forms.load_float_into_twin(inputs["float"], config, context.info)
        prepared = quantization.prepare_ptq(twin, config.backend, config.ptq.observer)
    training, _ = context.load_training()
    calibrate(
        prepared,
        training,
        config.dataset,
        config.ptq.calibration_samples,
        config.seed,
        config.ptq.batch_size,
        context.device,
        context.machine,
    )
    with context.machine.computing():
        int8 = quantization.convert(prepared, config.backend)
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
