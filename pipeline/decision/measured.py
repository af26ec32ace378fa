"""What is measured anew of exported files, held against limits: without torch, where no file needs it."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np

from pipeline.datasets.class_folders import by_class, comparable
from pipeline.decision.recorded import more_images
from pipeline.decision.verdict import Criterion, Verdict, judge
from pipeline.host import terminal
from pipeline.host.errors import UserError, suggestion
from pipeline.host.machine import Machine
from pipeline.measure import latency
from pipeline.measure.statistics import paired_interval
from pipeline.runtimes.exported import ExportedModel, load
from pipeline.settings.config import BenchmarkConfig


def drop(this: ExportedModel, that: ExportedModel, folder: Path, limit: float, machine: Machine) -> Iterator[Criterion]:
    """What a model loses against another on the images of a folder that has a folder a class.

    Besides it, where it does, that the model names one class for every image.

    Raises:
        UserError: when the classes do not match, an image cannot be read, or a model does not take it.
    """
    names = [comparable(name) for name in this.preprocessing.class_names]
    others = [comparable(name) for name in that.preprocessing.class_names]
    for model in (this, that):
        if not model.preprocessing.class_names:
            raise UserError(f"--images {folder}: {model.file} names no classes; allowed: models of classes")
    if {*names} != {*others}:
        raise UserError(
            f"{that.file}: its classes are {', '.join(others)}; allowed with {this.file}: {', '.join(names)}"
        )
    labelled = _list(folder, names)
    right = np.empty((2, len(labelled)), bool)
    named = set()
    with terminal.bar("images", len(labelled), unit="image") as bar:
        for index, (path, label) in enumerate(labelled):
            with machine.computing():
                image = this.preprocessing.apply(Path(path))
                same = this.preprocessing == that.preprocessing
                answer = names[this.probabilities(image).argmax()]
                other = others[that.probabilities(image if same else that.preprocessing.apply(Path(path))).argmax()]
            right[:, index] = answer == names[label], other == names[label]
            named.add(answer)
            bar.update(1)
    images, lost, won = len(labelled), int((right[1] & ~right[0]).sum()), int((right[0] & ~right[1]).sum())
    low, high = paired_interval(lost, won, images)
    verdict, values = judge(low, high, limit), 100 * right.mean(1)
    evidence = (
        f"the drop is {100 * (lost - won) / images:.2f} points of accuracy ({values[0]:.2f} %, against "
        f"{values[1]:.2f} %), 95 % interval [{low:.2f}, {high:.2f}], limit {limit:g}, on {images:,} images"
    )
    if verdict is Verdict.UNKNOWN:
        evidence += f"; {more_images(limit, lost + won, images)}"
    if len(named) == 1:
        said = f"it is constant: it names '{named.pop()}' for each of {images:,} images"
        yield Criterion("classes", Verdict.FAILS, said)
    yield Criterion("max-drop-pct", verdict, evidence)


def _list(folder: Path, names: list[str]) -> list[tuple[str, int]]:
    """The images, each with the number of its class."""
    key, allowed = f"--images {folder}", "allowed: a folder of images for each class, at least for two"
    if not folder.is_dir():
        raise UserError(f"{key}: no such folder; {allowed}")
    found, strays = by_class(folder, names)
    if strays:
        stray = min(strays)
        part = f"; did you mean --images {folder / 'test'}?" if "test" in strays else ""
        raise UserError(f"{key}: '{stray}' is no class of the model; {suggestion(stray, names)}{part}")
    if len({label for _, label in found}) < 2:
        raise UserError(f"{key}: images of {len({label for _, label in found})} classes; {allowed}")
    return found


def times(
    models: Mapping[str, ExportedModel], settings: BenchmarkConfig, machine: Machine
) -> tuple[dict[str, latency.Passes], str]:
    """The milliseconds of each model on one image, on 1 thread, turn by turn; and what to say if they do not tell.

    Raises:
        UserError: when a model does not take what its preprocessing makes.
    """
    loaders = {name: _loader(model) for name, model in models.items()}
    with machine.measuring():
        taken = latency.take_turns_afresh(loaders, settings)
    hint = "a quieter machine narrows the interval"
    if taken.timed_out:
        hint = f"--max-seconds {settings.max_seconds:g} were over: more of them, or {hint}"
    return dict(taken.samples_ms), hint


def _loader(model: ExportedModel) -> latency.Loader:
    image = model.preprocessing.example()
    model.outputs(image)
    return lambda: functools.partial(load(model.file).predictor, image)


def latency_of(passes: latency.Passes, hint: str, limit: float) -> Criterion:
    """The median, on this machine."""
    value, low, high = latency.median_interval(passes)
    evidence = f"{value:.3f} ms, 95 % interval [{low:.3f}, {high:.3f}], limit {limit:g}, at batch 1 on 1 thread, here"
    return _timed("max-latency-ms", judge(low, high, limit), evidence, hint)


def latency_ratio(this: latency.Passes, that: latency.Passes, hint: str, limit: float) -> Criterion:
    """How long a model takes, over how long another does."""
    value, low, high = latency.ratio_interval(this, that)
    evidence = (
        f"{value:.3f} times as long, 95 % interval [{low:.3f}, {high:.3f}], limit {limit:g}, at batch 1 on 1 thread, "
        "measured here turn by turn"
    )
    return _timed("max-latency-ratio", judge(low, high, limit), evidence, hint)


def _timed(name: str, verdict: Verdict, evidence: str, hint: str) -> Criterion:
    return Criterion(name, verdict, f"{evidence}; {hint}" if verdict is Verdict.UNKNOWN else evidence)


def size(model: ExportedModel, limit: float) -> Criterion:
    """The model's file, and those of its name beside it, where a runtime keeps the weights apart."""
    stem = model.file.name.removesuffix(model.file.suffix)
    value = sum(path.stat().st_size for path in model.file.parent.iterdir() if path.name.startswith(f"{stem}.")) / 1e6
    return Criterion("max-size-mb", judge(value, value, limit), f"{value:.2f} MB, limit {limit:g}")
