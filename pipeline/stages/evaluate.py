"""Measure each form of the model: accuracy on the validation and on the whole test part, latency at batch 1, size.

Whatever is chosen between runs is chosen by the validation part's numbers, `val/…`; the test part's are for the
report. Forms are compared pair by pair on the very images that all of them saw.
"""

from __future__ import annotations

import json
from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor, nn

from pipeline.datasets.loader import evaluation_batches
from pipeline.datasets.spec import Part
from pipeline.flows import forms
from pipeline.flows.contract import Form
from pipeline.measure.measurement import measure_latency, size_mb
from pipeline.measure.pairs import pair_metrics
from pipeline.measure.statistics import accuracy_interval
from pipeline.reports import plots
from pipeline.settings.config import Config
from pipeline.stages.contract import Inputs, Stage
from pipeline.training.context import Context
from pipeline.training.loop import accuracy_pct, predict

_ON_CPU_ALONE = ("ptq_int8", "int8")
# fp32_finetuned is the arithmetic of fp32, and qat_fake only simulates that of int8: nobody ships it for its speed.
_TIMED = ("fp32", "ptq_int8", "int8")


def run(config: Config, inputs: Inputs, context: Context) -> None:
    (_, validation), test = context.load_training(), context.load_test()
    with context.machine.computing():
        models = {
            prefix: forms.load(form, inputs[form], config, context.info)
            for form, prefix in forms.PREFIXES.items()
            if form in inputs
        }
    validated = {name: _predict(name, model, validation, config, context) for name, model in models.items()}
    _keep_predictions(validation, validated, "predictions_val.npz", context)
    predicted = {name: _predict(name, model, test, config, context) for name, model in models.items()}
    _keep_predictions(test, predicted, "predictions.npz", context)
    names = context.info.class_names
    with context.machine.computing():
        plots.confusion_matrix(test.labels, predicted["int8"], names, context.attach("confusion_matrix_int8.png"))
    latency = _measure_latency(config, {name: models[name] for name in _TIMED if name in models}, test, context)
    _report_validation(validation, validated, context)
    _report_test(test, predicted, context)
    with context.machine.computing():
        size = {name: size_mb(model) for name, model in models.items()}
    for name in models:
        context.metric(f"{name}/size_mb", size[name])
    context.metric("speedup", latency["fp32"] / latency["int8"])
    context.metric("compression", size["fp32"] / size["int8"])


def _predict(name: str, model: nn.Module, part: Part, config: Config, context: Context) -> Tensor:
    """The predicted class of every image of `part`; the model is on the CPU afterwards."""
    device = torch.device("cpu") if name in _ON_CPU_ALONE else context.device
    size, description = config.evaluate.batch_size, f"evaluate {name}"
    predicted = predict(
        model.to(device), part, config.dataset, size, device, description, context.flow, context.machine
    )
    model.to("cpu")
    return predicted


def _keep_predictions(part: Part, predicted: Mapping[str, Tensor], file: str, context: Context) -> None:
    """Write the labels and each form's classes, in the order of the part, so that a later test can be made."""
    kept = {"labels": part.labels, **predicted}
    smallest = np.min_scalar_type(len(context.info.class_names))
    arrays = {name: classes.numpy().astype(smallest) for name, classes in kept.items()}
    np.savez_compressed(context.attach(file), **arrays)  # type: ignore[arg-type]


def _report_validation(part: Part, predicted: Mapping[str, Tensor], context: Context) -> None:
    """Report what choices between runs rest on."""
    for name, classes in predicted.items():
        context.metric(f"val/{name}_accuracy_pct", accuracy_pct(classes, part))
    context.metric("val/images", len(part))
    context.metric("val/largest_class_pct", _largest_class_pct(part))
    _report_drop(pair_metrics(_right(part, predicted)), "val/", context)


def _report_test(part: Part, predicted: Mapping[str, Tensor], context: Context) -> None:
    """Report what is told of the models, each alone and in pairs."""
    for name, classes in predicted.items():
        accuracy = accuracy_pct(classes, part)
        low, high = accuracy_interval(accuracy, len(part))
        context.metric(f"{name}/accuracy_pct", accuracy)
        context.metric(f"{name}/accuracy_ci_low_pct", low)
        context.metric(f"{name}/accuracy_ci_high_pct", high)
        context.metric(f"{name}/named_classes", len(classes.unique()))
    context.metric("test_images", len(part))
    context.metric("test_largest_class_pct", _largest_class_pct(part))
    pairs = pair_metrics(_right(part, predicted))
    for metric, value in pairs.items():
        context.metric(metric, value)
    _report_drop(pairs, "", context)
    context.metric("mcnemar_fp32_only_right", pairs["int8_vs_fp32/lost_images"])
    context.metric("mcnemar_int8_only_right", pairs["int8_vs_fp32/won_images"])
    context.metric("mcnemar_p", pairs["int8_vs_fp32/mcnemar_p"])
    if "int8_vs_fp32_finetuned/difference_pct" in pairs:
        context.metric("accuracy_drop_vs_finetuned_pct", 0.0 - pairs["int8_vs_fp32_finetuned/difference_pct"])


def _report_drop(pairs: Mapping[str, float], before: str, context: Context) -> None:
    """The drop from fp32 to int8, which is the pair's difference seen from the other side."""
    context.metric(f"{before}accuracy_drop_pct", 0.0 - pairs["int8_vs_fp32/difference_pct"])
    context.metric(f"{before}accuracy_drop_ci_low_pct", 0.0 - pairs["int8_vs_fp32/difference_ci_high_pct"])
    context.metric(f"{before}accuracy_drop_ci_high_pct", 0.0 - pairs["int8_vs_fp32/difference_ci_low_pct"])


def _right(part: Part, predicted: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: classes == part.labels for name, classes in predicted.items()}


def _largest_class_pct(part: Part) -> float:
    """The accuracy of always naming the class that most images have, in percent."""
    return 100 * float(part.labels.bincount().max()) / len(part)


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
        "dataset.crop_padding",
        "dataset.horizontal_flip",
        "evaluate.fake_quantized",  # is in the key as the form that it adds
    ),
    parts=("train", "test"),
    measures_machine=True,
)
