"""Measure fp32 against int8: accuracy on the whole test part, latency at batch 1, size.

The only stage that reads the test part.
"""

from __future__ import annotations

import json

import numpy as np
import torch
from torch import nn

from pipeline import forms, plots
from pipeline.config import Config
from pipeline.datasets.loader import evaluation_batches
from pipeline.datasets.spec import Part
from pipeline.measurement import measure_latency, size_mb
from pipeline.stage import Context, Inputs, Stage
from pipeline.training import accuracy_pct, predict


def run(config: Config, inputs: Inputs, context: Context) -> None:
    test = context.load_test()
    cpu = torch.device("cpu")
    models = {
        "fp32": forms.load("float", inputs["float"], config, context.info),
        "int8": forms.load("int8", inputs["int8"], config, context.info),
    }
    accuracy: dict[str, float] = {}
    size: dict[str, float] = {}
    for name, model in models.items():
        device = context.device if name == "fp32" else cpu
        predicted = predict(
            model.to(device),
            test,
            config.dataset,
            config.evaluate.batch_size,
            device,
            f"evaluate {name}",
            context.machine,
        )
        model.to(cpu)
        accuracy[name] = accuracy_pct(predicted, test)
        size[name] = size_mb(model)
        if name == "int8":
            names = context.info.class_names
            plots.confusion_matrix(test.labels, predicted, names, context.attach("confusion_matrix_int8.png"))
    latency = _measure_latency(config, models, test, context)
    for name in models:
        context.metric(f"{name}/accuracy_pct", accuracy[name])
        context.metric(f"{name}/size_mb", size[name])
    context.metric("test_images", len(test))
    context.metric("accuracy_drop_pct", accuracy["fp32"] - accuracy["int8"])
    context.metric("speedup", latency["fp32"] / latency["int8"])
    context.metric("compression", size["fp32"] / size["int8"])


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


STAGE = Stage(
    name="evaluate",
    run=run,
    sections=("model", "dataset", "backend", "fuse", "evaluate", "device"),
    consumes=("float", "int8"),
    ignores=(
        "dataset.max_train_samples",
        "dataset.validation_fraction",
        "dataset.crop_padding",
        "dataset.horizontal_flip",
    ),
    parts=("test",),
    measures_machine=True,
)
