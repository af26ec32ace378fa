"""The card of a run: what the int8 model is, on which data it stands, what it is worth, and how to make it again.

It is made of what the run told its store, and of the artifacts that the run names, where they are still there.
"""

from __future__ import annotations

import csv
import json
from pathlib import Path

from pipeline.flows import FORMS
from pipeline.measure.statistics import SIGNIFICANCE
from pipeline.reports import results
from pipeline.reports.card import Section
from pipeline.reports.tracked_run import TrackedRun
from pipeline.tasks import Metric

_MACHINE = ("cpu", "torch_version", "latency_threads", "device", "git_commit")
_MANIFEST = "manifest.json"


def sections(run: TrackedRun, outputs: Path) -> list[Section]:
    """The card's sections; `outputs` is the folder of the run's artifacts."""
    found = [_what(run), _data(run), *_worth(run)]
    groups = _folder(run, outputs, "evaluate") / "groups.csv"
    if groups.is_file():
        found.append(_groups(groups, run.metric))
    found += [_quantization(run), _machine(run), *_files(run, outputs), _again(run), _not_tried(run)]
    return found


def title(run: TrackedRun) -> str:
    """The card's title."""
    return f"Card of {run.name}"


def _folder(run: TrackedRun, outputs: Path, stage: str) -> Path:
    return outputs / "artifacts" / run.tags.get(f"artifact.{stage}", "none")


def _setting(run: TrackedRun, *names: str) -> list[str]:
    return [f"{name}={run.parameters[name]}" for name in names if run.parameters.get(name, "None") != "None"]


def _what(run: TrackedRun) -> Section:
    chosen = _setting(
        run, "model.name", "model.arch", "model.target", "model.weights", "backend.name", "method", "task"
    )
    return Section("What it is", [f"Run {run.run_id} ({run.status.lower()}): {', '.join(chosen)}."])


def _data(run: TrackedRun) -> Section:
    text = [
        f"{', '.join(_setting(run, 'dataset.name', 'dataset.target', 'dataset.root', 'dataset.image_size'))}; "
        f"content {run.tags.get('dataset.digest', 'unknown')}."
    ]
    counts = {"validation": run.metrics.get("val/images"), "test": run.metrics.get("test_images")}
    text.append(", ".join(f"{count:,.0f} {part} images" for part, count in counts.items() if count is not None) + ".")
    text += [f"Warning: {line}" for name, line in sorted(run.tags.items()) if name.startswith("warning.")]
    return Section("On which data", text)


def _worth(run: TrackedRun) -> list[Section]:
    if "speedup" not in run.metrics:
        return [Section("What it is worth", ["This run has not evaluated a model."])]
    method = run.parameters.get("method", "qat")
    words = results.in_words(run.metrics, run.metric, method).splitlines()
    rows = []
    for form in FORMS:
        name = f"{form.prefix}/{run.metric.name}"
        if name in run.metrics:
            low, high = (run.metrics[f"{form.prefix}/{run.metric.of(end)}"] for end in ("ci_low", "ci_high"))
            measured = [run.metrics.get(f"{form.prefix}/{what}") for what in ("latency_ms", "size_mb")]
            rows.append(
                [
                    form.label_for(method),
                    f"{run.metrics[f'val/{form.prefix}_{run.metric.name}']:.2f}",
                    f"{run.metrics[name]:.2f} [{low:.2f}, {high:.2f}]",
                    *("–" if value is None else f"{value:.2f}" for value in measured),
                ]
            )
    unit = run.metric.heading
    heads = ["", f"validation {unit}", f"test {unit}", "latency ms, batch 1", "size MB"]
    return [Section("What it is worth", words, heads, rows)]


def _groups(path: Path, metric: Metric) -> Section:
    with path.open(newline="") as stream:
        read = list(csv.DictReader(stream))
    rows = []
    for row in sorted(read, key=lambda row: float(row["won"]) - float(row["lost"])):
        values = [
            f"{float(row[f'{form}_{metric.name}']):.2f} [{float(row[f'{form}_ci_low']):.2f}, "
            f"{float(row[f'{form}_ci_high']):.2f}]"
            for form in ("fp32", "int8")
        ]
        p = f"{float(row[f'{metric.test}_holm']):.2g}"
        rows.append([row["group"], row["images"], *values, f"{row['lost']} / {row['won']}", p])
    lost = [row[0] for row in rows if float(row[-1]) < SIGNIFICANCE]
    verdict = f"Beyond chance, int8 changes: {', '.join(lost)}." if lost else "No class changes beyond what is chance."
    heads = ["class", "images", f"fp32 {metric.heading}", f"int8 {metric.heading}", "lost / won", "p (Holm)"]
    return Section("Class by class, on the test part", [f"{verdict} The class that loses most is first."], heads, rows)


def _quantization(run: TrackedRun) -> Section:
    text = [
        f"{name}: activation {run.tags[f'{name}.activation']}; weight {run.tags[f'{name}.weight']}."
        for name in ("qconfig", "ptq_qconfig")
        if f"{name}.activation" in run.tags
    ]
    text.append(", ".join(_setting(run, "ptq.calibration_samples", "ptq.bias_correction", "backend.skip_layers")) + ".")
    return Section("How it is quantized and calibrated", text)


def _machine(run: TrackedRun) -> Section:
    return Section(
        "Measured on", [", ".join(f"{name} {run.tags[name]}" for name in _MACHINE if run.tags.get(name)) + "."]
    )


def _files(run: TrackedRun, outputs: Path) -> list[Section]:
    manifest = _folder(run, outputs, "export") / _MANIFEST
    if not manifest.is_file():
        return []
    hashes = json.loads(manifest.read_text())["files"]
    rows = [
        [name, f"{(manifest.parent / name).stat().st_size / 1e6:.2f}", digest]
        for name, digest in sorted(hashes.items())
        if name.startswith("int8/")
    ]
    return [Section("Files", [f"In {manifest.parent}."], ["file", "MB", "SHA-256"], rows)]


def _again(run: TrackedRun) -> Section:
    line = run.tags.get("command")
    known = "" if line else "The run is from before its command was kept."
    return Section("Made again by", [known] if known else [], code=[line] if line else [])


def _not_tried(run: TrackedRun) -> Section:
    method = run.parameters.get("method", "qat")
    forms = [
        form.label_for(method)
        for form in FORMS
        if form.made_by not in (None, method) and f"{form.prefix}/{run.metric.name}" not in run.metrics
    ]
    other = "qat" if method == "ptq" else None
    text = [*([f"{other.upper()} int8"] if other else []), *forms]
    tried = f"In this run: {', '.join(text)}." if text else "Every form of this run's method was measured."
    return Section("What was not tried", [tried])
