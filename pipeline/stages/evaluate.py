"""Measure each form of the model: accuracy with its interval on the whole test part, latency at batch 1, size.

The only stage that reads the test part. fp32 against int8 is tested on the very images that both saw.
"""

from __future__ import annotations

import json
from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor, nn

from pipeline import forms, plots
from pipeline.config import Config
from pipeline.datasets.loader import evaluation_batches
from pipeline.datasets.spec import Part
from pipeline.measurement import measure_latency, size_mb
from pipeline.quantization import Form
from pipeline.stage import Context, Inputs, Stage
from pipeline.statistics import accuracy_interval, mcnemar_p
from pipeline.training import accuracy_pct, predict

_ON_CPU_ALONE = ("ptq_int8", "int8")
# fp32_finetuned is the arithmetic of fp32, and qat_fake only simulates that of int8: nobody ships it for its speed.
_TIMED = ("fp32", "ptq_int8", "int8")


def run(config: Config, inputs: Inputs, context: Context) -> None:
    test = context.load_test()
    models = {
        prefix: forms.load(form, inputs[form], config, context.info)
        for form, prefix in forms.PREFIXES.items()
        if form in inputs
    }
    predicted = {name: _predict(name, model, test, config, context) for name, model in models.items()}
    _keep_predictions(test, predicted, context)
    names = context.info.class_names
    plots.confusion_matrix(test.labels, predicted["int8"], names, context.attach("confusion_matrix_int8.png"))
    latency = _measure_latency(config, {name: models[name] for name in _TIMED if name in models}, test, context)
    accuracy = {name: accuracy_pct(classes, test) for name, classes in predicted.items()}
    size = {name: size_mb(model) for name, model in models.items()}
    for name in models:
        low, high = accuracy_interval(accuracy[name], len(test))
        context.metric(f"{name}/accuracy_pct", accuracy[name])
        context.metric(f"{name}/accuracy_ci_low_pct", low)
        context.metric(f"{name}/accuracy_ci_high_pct", high)
        context.metric(f"{name}/size_mb", size[name])
    context.metric("test_images", len(test))
    context.metric("accuracy_drop_pct", accuracy["fp32"] - accuracy["int8"])
    if "fp32_finetuned" in models:
        context.metric("accuracy_drop_vs_finetuned_pct", accuracy["fp32_finetuned"] - accuracy["int8"])
    context.metric("speedup", latency["fp32"] / latency["int8"])
    context.metric("compression", size["fp32"] / size["int8"])
    _test_difference(test, predicted["fp32"], predicted["int8"], context)


def _predict(name: str, model: nn.Module, test: Part, config: Config, context: Context) -> Tensor:
    """The predicted class of every test image; the model is on the CPU afterwards."""
    device = torch.device("cpu") if name in _ON_CPU_ALONE else context.device
    size, description = config.evaluate.batch_size, f"evaluate {name}"
    predicted = predict(model.to(device), test, config.dataset, size, device, description, context.machine)
    model.to("cpu")
    return predicted


def _keep_predictions(test: Part, predicted: Mapping[str, Tensor], context: Context) -> None:
    """Write the labels and each form's classes, in the order of the test part, so that a later test can be made."""
    kept = {"labels": test.labels, **predicted}
    smallest = np.min_scalar_type(len(context.info.class_names))
    arrays = {name: classes.numpy().astype(smallest) for name, classes in kept.items()}
    np.savez_compressed(context.attach("predictions.npz"), **arrays)  # type: ignore[arg-type]


def _test_difference(test: Part, fp32: Tensor, int8: Tensor, context: Context) -> None:
    """Report McNemar's test: only the images that one of the two gets right tell them apart."""
    fp32_right, int8_right = fp32 == test.labels, int8 == test.labels
    only_fp32 = int((fp32_right & ~int8_right).sum())
    only_int8 = int((int8_right & ~fp32_right).sum())
    context.metric("mcnemar_fp32_only_right", only_fp32)
    context.metric("mcnemar_int8_only_right", only_int8)
    context.metric("mcnemar_p", mcnemar_p(only_fp32, only_int8))


def _measure_latency(config: Config, models: dict[str, nn.Module], test: Part, context: Context) -> dict[str, float]:
    """Report the latency of each model, and give the medians in milliseconds."""
    image, _ = next(evaluation_batches(test.select(np.array([0])), config.dataset, 1, torch.device("cpu")))
    with context.machine.measuring():
        measured = measure_latency(
            models,
            image,
            thread_count=config.evaluate.threads,
            warmup=config.evaluate.warmup,
            repeats=config.evaluate.repeats,
        )
    for name, latency in measured.items():
        context.metric(f"{name}/latency_ms", latency.median_ms)
        context.metric(f"{name}/latency_p90_ms", latency.percentile_ms(90))
        context.metric(f"{name}/latency_p99_ms", latency.percentile_ms(99))
    context.metric("latency_repeats", config.evaluate.repeats)
    samples = {name: latency.samples_ms for name, latency in measured.items()}
    context.attach("latency_samples_ms.json").write_text(json.dumps(samples))
    return {name: latency.median_ms for name, latency in measured.items()}


def _controls(config: Config) -> tuple[Form, ...]:
    """The forms beside fp32 and int8: a control that this run makes, and the fake-quantized model when asked."""
    made: dict[str, Form] = {"finetune": "float_finetuned", "ptq": "ptq_int8"}
    controls = [form for stage, form in made.items() if stage in config.stages]
    return (*controls, "qat") if config.evaluate.fake_quantized else tuple(controls)


STAGE = Stage(
    name="evaluate",
    run=run,
    sections=("model", "dataset", "backend", "fuse", "evaluate", "device"),
    consumes=("float", "int8"),
    also_consumes=_controls,
    ignores=(
        "dataset.max_train_samples",
        "dataset.validation_fraction",
        "dataset.crop_padding",
        "dataset.horizontal_flip",
        "evaluate.fake_quantized",  # is in the key as the form that it adds
    ),
    parts=("test",),
    version=2,
    measures_machine=True,
)
