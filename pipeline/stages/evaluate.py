"""Measure each form of the model: the primary metric on the validation and on the whole test part, latency, size.

Whatever is chosen between runs is chosen by the validation part's numbers, `val/…`; the test part's are for the
report. Forms are compared pair by pair on the very images that all of them saw.
"""

from __future__ import annotations

import csv
import json
import tempfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from pipeline import runtimes
from pipeline.datasets.loader import evaluation_batches
from pipeline.datasets.spec import Part
from pipeline.flows import BY_PREFIX, FORMS, Form, controls, forms
from pipeline.host import terminal
from pipeline.host.errors import first_line
from pipeline.host.faults import fault
from pipeline.measure.latency import measure_latency
from pipeline.measure.measurement import size_mb, threads
from pipeline.measure.pairs import difference, interval, pair_metrics
from pipeline.measure.statistics import holm
from pipeline.runtimes import Predictor
from pipeline.settings.config import Config
from pipeline.stages.contract import Inputs, Stage
from pipeline.tasks.contract import Task
from pipeline.training.context import Context
from pipeline.training.loop import predict


def run(config: Config, inputs: Inputs, context: Context) -> None:
    (_, validation), test = context.load_training(), context.load_test()
    with context.machine.computing():
        models = {
            form.prefix: forms.load(form.name, inputs[form.name], config, context.info)
            for form in FORMS
            if form.name in inputs
        }
    validated = {name: _decide(name, model, validation, config, context) for name, model in models.items()}
    _keep_decisions(validation, validated, "predictions_val.npz", context)
    decided = {name: _decide(name, model, test, config, context) for name, model in models.items()}
    _keep_decisions(test, decided, "predictions.npz", context)
    with context.machine.computing():
        context.task.show(decided, test.labels, context.info, context.attach)
    _keep_groups(test, decided, context)
    timed = {name: model for name, model in models.items() if BY_PREFIX[name].is_shipped}
    latency = _measure_latency(config, timed, test, context)
    _report_validation(validation, validated, context)
    _report_test(test, decided, context)
    with context.machine.computing():
        size = {name: size_mb(model) for name, model in models.items()}
    for name in models:
        context.metric(f"{name}/size_mb", size[name])
    context.metric("speedup", latency["fp32"] / latency["int8"])
    context.metric("compression", size["fp32"] / size["int8"])


def _decide(name: str, model: nn.Module, part: Part, config: Config, context: Context) -> Tensor:
    """What is decided on every image of `part`, (N, …); the model is on the CPU afterwards."""
    device = torch.device("cpu") if BY_PREFIX[name].is_int8 else context.device
    size, description = config.evaluate.batch_size, f"evaluate {name}"
    flow, machine = context.flow, context.machine
    decided = predict(model.to(device), part, config.dataset, size, device, description, flow, machine, context.task)
    model.to("cpu")
    return decided


def _keep_decisions(part: Part, decided: Mapping[str, Tensor], file: str, context: Context) -> None:
    """Write the targets and what each form decided, in the order of the part, so that a later test can be made."""
    arrays = {name: _smallest(values.numpy()) for name, values in {"labels": part.labels, **decided}.items()}
    np.savez_compressed(context.attach(file), **arrays)  # type: ignore[arg-type]


def _keep_groups(part: Part, decided: Mapping[str, Tensor], context: Context) -> None:
    """Write a row for each group of the test part that the task tells apart: which of them lose by int8?"""
    task, scores = context.task, _scores(part, decided, context.task)
    metric, rows = task.primary, []
    for name, chosen in task.groups(part.labels, context.info).items():
        if not chosen.any():
            continue
        of_group = {form: scores[form][chosen] for form in ("fp32", "int8")}
        row: dict[str, object] = {"group": name, "images": int(chosen.sum())}
        for form, values in of_group.items():
            low, high = interval(metric, values)
            value = metric.scale * float(values.double().mean())
            row |= {f"{form}_{metric.name}": value, f"{form}_ci_low": low, f"{form}_ci_high": high}
        apart = difference(metric, of_group["int8"], of_group["fp32"])
        rows.append(row | {"lost": apart.lost, "won": apart.won, metric.test: apart.p})
    if rows:
        for row, p in zip(rows, holm([float(str(row[metric.test])) for row in rows]), strict=True):
            row[f"{metric.test}_holm"] = p
        with context.attach("groups.csv").open("w", newline="") as stream:
            table = csv.DictWriter(stream, list(rows[0]))
            table.writeheader()
            table.writerows(rows)


def _smallest(values: np.ndarray) -> np.ndarray:
    """Whole numbers in the smallest type that holds all of them."""
    if values.dtype.kind not in "iu":
        return values
    return values.astype(np.promote_types(np.min_scalar_type(values.min()), np.min_scalar_type(values.max())))


def _report_validation(part: Part, decided: Mapping[str, Tensor], context: Context) -> None:
    """Report what choices between runs rest on."""
    task = context.task
    for name, values in decided.items():
        context.metric(f"val/{name}_{task.primary.name}", task.value(values, part.labels))
    context.metric("val/images", len(part))
    for what, value in task.of_targets(part.labels).items():
        context.metric(f"val/{what}", value)
    _report_drop(pair_metrics(task.primary, _scores(part, decided, task)), "val/", context)


def _report_test(part: Part, decided: Mapping[str, Tensor], context: Context) -> None:
    """Report what is told of the models, each alone and in pairs."""
    task, metric = context.task, context.task.primary
    scores = _scores(part, decided, task)
    for name, values in decided.items():
        low, high = interval(metric, scores[name])
        context.metric(f"{name}/{metric.name}", task.value(values, part.labels))
        context.metric(f"{name}/{metric.of('ci_low')}", low)
        context.metric(f"{name}/{metric.of('ci_high')}", high)
        for what, value in task.of_decisions(values).items():
            context.metric(f"{name}/{what}", value)
    context.metric("test_images", len(part))
    for what, value in task.of_targets(part.labels).items():
        context.metric(f"test_{what}", value)
    pairs = pair_metrics(metric, scores)
    for name, value in pairs.items():
        context.metric(name, value)
    _report_drop(pairs, "", context)
    if metric.is_share:
        context.metric("mcnemar_fp32_only_right", pairs["int8_vs_fp32/lost_images"])
        context.metric("mcnemar_int8_only_right", pairs["int8_vs_fp32/won_images"])
    context.metric(metric.test, pairs[f"int8_vs_fp32/{metric.test}"])
    tuned = f"int8_vs_fp32_finetuned/{metric.in_unit('difference')}"
    if tuned in pairs:
        context.metric(metric.of("drop_vs_finetuned"), metric.drop(0.0, pairs[tuned]))


def _report_drop(pairs: Mapping[str, float], before: str, context: Context) -> None:
    """The drop from fp32 to int8, which is the pair's difference seen from the other side."""
    metric = context.task.primary
    value, *bounds = (
        metric.drop(0.0, pairs[f"int8_vs_fp32/{metric.in_unit(what)}"])
        for what in ("difference", "difference_ci_low", "difference_ci_high")
    )
    context.metric(f"{before}{metric.of('drop')}", value)
    context.metric(f"{before}{metric.of('drop_ci_low')}", min(bounds))
    context.metric(f"{before}{metric.of('drop_ci_high')}", max(bounds))


def _scores(part: Part, decided: Mapping[str, Tensor], task: Task) -> dict[str, Tensor]:
    return {name: task.score(values, part.labels) for name, values in decided.items()}


def _measure_latency(config: Config, models: dict[str, nn.Module], test: Part, context: Context) -> dict[str, float]:
    """Report the latency of each model, and give the medians in milliseconds.

    Where torch only simulates int8, all are measured in the runtime that it is made for.
    """
    image, _ = next(evaluation_batches(test.select(np.array([0])), config.dataset, 1, torch.device("cpu")))
    settings = config.evaluate
    runtime = context.flow.runtime(config)
    with tempfile.TemporaryDirectory() as folder:
        if runtime is not None:
            with context.machine.computing(), threads(settings.threads):
                models = _shipped(models, runtime, image, settings.threads, Path(folder))
        with context.machine.measuring():
            measured = measure_latency(
                models, image, thread_count=settings.threads, warmup=settings.warmup, repeats=settings.repeats
            )
    for name, samples in measured.items():
        context.metric(f"{name}/latency_ms", float(np.median(samples)))
        context.metric(f"{name}/latency_p90_ms", float(np.percentile(samples, 90)))
        context.metric(f"{name}/latency_p99_ms", float(np.percentile(samples, 99)))
    context.metric("latency_repeats", config.evaluate.repeats)
    context.attach("latency_samples_ms.json").write_text(json.dumps(measured))
    return {name: float(np.median(samples)) for name, samples in measured.items()}


class _Shipped(nn.Module):
    """A runtime's predictor, called as a model is."""

    def __init__(self, predictor: Predictor) -> None:
        super().__init__()
        self._predictor = predictor

    def forward(self, images: Tensor) -> Tensor:
        return torch.from_numpy(self._predictor(images.numpy()))


def _shipped(
    models: dict[str, nn.Module], name: str, image: Tensor, thread_count: int, folder: Path
) -> dict[str, nn.Module]:
    """Each model in a runtime; the models as they are, with a line, where it cannot take one of them."""
    runtime = runtimes.find(name)
    shipped: dict[str, nn.Module] = {}
    for prefix, model in models.items():
        place = folder / prefix
        place.mkdir()
        try:
            runtime.export(model, image, place)
            shipped[prefix] = _Shipped(runtime.load(place, thread_count))
        except Exception as error:  # whatever an exporter or a runtime raises for a network that it cannot take
            if fault(error):
                raise
            terminal.warn(
                f"evaluate: {name} cannot take {prefix} ({type(error).__name__}: {first_line(error)}): the latencies "
                "are torch's, which only simulates int8 and says nothing of its speed"
            )
            return models
    return shipped


def _controls(config: Config) -> tuple[Form, ...]:
    """The forms beside fp32 and int8: a control that this run makes, and the fake-quantized model when asked."""
    beside = tuple(form.name for form in controls(config.stages, config.method))
    return (*beside, "qat") if config.evaluate.fake_quantized else beside


STAGE = Stage(
    name="evaluate",
    run=run,
    sections=("task", "model", "dataset", "backend", "fuse", "evaluate", "device"),
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
