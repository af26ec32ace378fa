"""Measure what int8 costs layer by layer, and name the layers that are best left float.

Calibrated on training images as `ptq` is; the primary metric is that of validation images, never of the test part.
"""

from __future__ import annotations

from pipeline.datasets.loader import evaluation_batches
from pipeline.flows import forms
from pipeline.host import terminal
from pipeline.measure.sensitivity import analyse
from pipeline.reports import plots
from pipeline.reports.sensitivity_report import advice, csv_table, markdown_table
from pipeline.settings.config import Config
from pipeline.stages.contract import Inputs, Stage
from pipeline.training.calibration import calibrate, choose
from pipeline.training.context import Context


def run(config: Config, inputs: Inputs, context: Context) -> None:
    training, validation = context.load_training()
    ptq, measured = config.ptq, config.sensitivity
    with context.machine.computing():
        float_model = forms.load("float", inputs["float"], config, context.info)
        model = context.flow.prepare_simulation(float_model, config, context.info)
    calibrate(model, config, context)
    seen = choose(training, ptq.calibration_samples, config.seed)
    held_out = choose(validation, measured.samples, config.seed)
    found = analyse(
        model,
        context.flow,
        context.task,
        lambda: evaluation_batches(seen, config.dataset, ptq.batch_size, context.device),
        lambda: evaluation_batches(held_out, config.dataset, measured.batch_size, context.device),
        context.machine,
    )
    context.attach("sensitivity.md").write_text(markdown_table(found, len(held_out)))
    context.attach("sensitivity.csv").write_text(csv_table(found))
    with context.machine.computing():
        plots.sensitivity(found, context.attach("sensitivity.png"))
    context.metric(f"sensitivity/float_{found.metric.name}", found.all_float)
    context.metric(f"sensitivity/int8_{found.metric.name}", found.all_int8)
    context.metric("sensitivity/worst_snr_db", min(layer.activation_snr_db for layer in found.layers))
    context.metric("sensitivity/images", len(held_out))
    terminal.say(advice(found, config.backend.skip_layers))


STAGE = Stage(
    name="sensitivity",
    run=run,
    sections=("task", "model", "dataset", "backend", "ptq", "sensitivity", "seed", "device"),
    consumes=("float",),
    ignores=("dataset.max_test_samples", "dataset.crop_padding", "dataset.horizontal_flip", "backend.fake_quantize"),
    parts=("train",),
)
