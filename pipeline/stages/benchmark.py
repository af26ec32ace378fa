"""Measure the float and the int8 models on every runtime, turn by turn in one loop, and how near the limit they come.

What has failed parity is left out. Eager fp32 and int8 are always in the loop, since ratios are to them.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Callable

import numpy as np
import torch

from pipeline.datasets import catalogue
from pipeline.datasets.loader import evaluation_batches
from pipeline.flows import FORMS, Form, forms
from pipeline.host import environment, terminal
from pipeline.host.errors import UserError
from pipeline.host.pinning import pinned
from pipeline.measure import latency, roofline
from pipeline.measure.latency import Taken
from pipeline.measure.measurement import threads as kept_threads
from pipeline.measure.roofline import Peak
from pipeline.reports import runtime_report
from pipeline.reports.runtime_report import Measured, runtimes_table
from pipeline.runtimes import EAGER, Predictor, eager, exported_to, memory, parity
from pipeline.runtimes import find as find_runtime
from pipeline.settings.config import Config
from pipeline.stages.contract import Inputs, Stage
from pipeline.training.context import Context

# The share of the processors that others may use before a measurement is worth a warning.
_BUSY = 0.1


def run(config: Config, inputs: Inputs, context: Context) -> None:
    settings, test = config.benchmark, context.load_test()
    largest = max(settings.batch_sizes)
    chosen = test.select(np.arange(largest) % len(test))
    # Torch's own models take them normalized, and exported files as export.input says.
    images, for_files = (
        next(evaluation_batches(chosen, config.dataset, largest, torch.device("cpu"), as_pictures))[0].contiguous()
        for as_pictures in (False, config.export.takes_pictures)
    )
    with context.machine.computing():
        model = forms.load("float", inputs["float"], config, context.info)
        macs = roofline.count_macs(model, images[:1])
        weights = sum(parameter.numel() for parameter in model.parameters())
    rows: list[Measured] = []
    samples: dict[str, dict[str, list[list[float]]]] = {}
    with context.machine.measuring(), kept_threads():
        for threads in dict.fromkeys(settings.threads):
            _warn_if_busy()
            with pinned(threads if settings.pin else None):
                peak = roofline.measure_peak(threads, context.flow)
                for batch_size in dict.fromkeys(settings.batch_sizes):
                    given = images[:batch_size].numpy(), for_files[:batch_size].numpy()
                    loaders = _loaders(config, inputs, context, threads, *given)
                    taken = latency.take_turns_afresh(loaders, settings)
                    samples[f"{threads} threads, batch {batch_size}"] = taken.samples_ms
                    measured = _rows(taken, peak, batch_size, macs)
                    _tell_limits(taken, measured[0], config)
                    rows += measured
    context.metric("gmacs", macs / 1e9)
    for peak in dict.fromkeys(row.peak for row in rows):
        for what in ("fp32_gmacs", "int8_gmacs", "memory_gbytes"):
            context.metric(f"machine/peak_{what}_t{peak.threads}", getattr(peak, what))
    for row in rows:
        for name, value in row.metrics().items():
            context.metric(name, value)
    # A process that measures it makes its images by the preprocessing beside the file.
    can_prepare = catalogue.preprocessing(config.dataset) is not None
    memory_mb = _peak_memory(rows, config, inputs, context) if settings.memory and can_prepare else {}
    for name, megabytes in memory_mb.items():
        context.metric(f"{name}/peak_memory_mb", megabytes)
    cpu = environment.cpu_name()
    context.attach("runtimes.md").write_text(runtimes_table(rows, memory_mb, cpu, "github"))
    terminal.say(f"\n{runtimes_table(rows, memory_mb, cpu, 'simple')}\n")
    with context.machine.computing():
        runtime_report.draw_bars(rows, context.attach("runtimes.png"))
        markers = {EAGER: "o"} | {runtime.name: runtime.marker for runtime in exported_to(config.runtime.names)}
        runtime_report.draw_roofline(rows, weights, markers, context.attach("roofline.png"))
    context.attach("benchmark_samples_ms.json").write_text(json.dumps(samples))


def _loaders(
    config: Config, inputs: Inputs, context: Context, threads: int, images: np.ndarray, for_files: np.ndarray
) -> dict[str, latency.Loader]:
    """By `<runtime>/<form>`: torch's own models, on `images`, and every exported file that has parity, on its own."""

    def load_eager(form: Form) -> Predictor:
        return eager.predictor(forms.load(form, inputs[form], config, context.info), threads)

    def loader(load: Callable[[], Predictor], given: np.ndarray) -> latency.Loader:
        return lambda: functools.partial(load(), given)

    exports = inputs["exports"]
    loaders = {
        f"{EAGER}/{form.prefix}": loader(functools.partial(load_eager, form.name), images)
        for form in FORMS
        if form.name in inputs
    }
    for prefix, verdicts in json.loads((exports / parity.FILE).read_text()).items():
        for runtime in exported_to(config.runtime.names):
            if verdicts[runtime.name]:
                folder = exports / prefix / runtime.name
                load = functools.partial(runtime.load, folder, threads)
                loaders[f"{runtime.name}/{prefix}"] = loader(load, for_files)
    return loaders


def _rows(taken: Taken, peak: Peak, batch_size: int, macs: int) -> list[Measured]:
    samples = taken.samples_ms
    medians = {name: latency.median_interval(passes) for name, passes in samples.items()}
    best = min((name for name in samples if name.endswith("/fp32")), key=lambda name: medians[name][0])
    return [
        Measured(
            runtime=name.split("/")[0],
            form=name.split("/")[1],
            batch_size=batch_size,
            macs=macs,
            peak=peak,
            median_ms=medians[name],
            p90_ms=float(np.percentile(np.concatenate(passes), 90)),
            p99_ms=float(np.percentile(np.concatenate(passes), 99)),
            to_eager_fp32=latency.ratio_interval(samples[f"{EAGER}/fp32"], passes),
            to_best_fp32=latency.ratio_interval(samples[best], passes),
            best_fp32=best.split("/")[0],
            rounds=taken.rounds,
            passes=len(passes),
        )
        for name, passes in samples.items()
    ]


def _peak_memory(rows: list[Measured], config: Config, inputs: Inputs, context: Context) -> dict[str, float]:
    """Of each exported file that was measured, with the fewest threads and images: MB by `<runtime>/<form>`."""
    threads, batch_size = min(config.benchmark.threads), min(config.benchmark.batch_sizes)
    asked = {find_runtime(name).name: name for name in config.runtime.names if name != EAGER}
    found = {}
    for row in {row.name: row for row in rows if row.runtime != EAGER}.values():
        folder = inputs["exports"] / row.form / row.runtime
        try:
            with context.machine.computing():
                found[row.name] = memory.peak_memory_mb(asked[row.runtime], folder, threads, batch_size)
        except UserError as error:  # the latencies are measured and shall not be lost for it
            terminal.warn(f"benchmark: {error}")
    return found


def _warn_if_busy() -> None:
    share = environment.busy_share()
    if share is not None and share > _BUSY:
        terminal.warn(
            f"benchmark: {100 * share:.0f} % of the processors are at work for others: trust the ratios, which are "
            "taken turn by turn, not the milliseconds"
        )


def _tell_limits(taken: Taken, measured: Measured, config: Config) -> None:
    """Say what a loop did not reach, and which setting lets it."""
    where = f"benchmark, {measured.loop}"
    if not taken.stable:
        terminal.warn(f"{where}: the times were not stable after {taken.warmup_rounds} rounds of warm-up")
    name, width_pct = taken.widest()
    if width_pct >= config.benchmark.interval_pct:
        # Where the rounds of each pass told enough, what is left is how the passes differ.
        over = f"benchmark.max_seconds={config.benchmark.max_seconds:g} were over: more of them, and "
        terminal.warn(
            f"{where}: after {taken.rounds} rounds in {measured.passes} passes the 95 % interval of {name} is "
            f"{width_pct:.1f} % of its median wide (benchmark.interval_pct={config.benchmark.interval_pct:g}); "
            f"{over if taken.timed_out else ''}more benchmark.passes narrow it"
        )


STAGE = Stage(
    name="benchmark",
    run=run,
    sections=("model", "dataset", "backend", "fuse", "runtime", "export", "benchmark", "evaluate"),
    consumes=("float", "int8", "exports"),
    ignores=(
        "dataset.max_train_samples",
        "dataset.validation_fraction",
        "dataset.crop_padding",
        "dataset.horizontal_flip",
        "export.min_agreement",
        "evaluate.fake_quantized",
        "evaluate.batch_size",
        "evaluate.threads",
        "evaluate.warmup",
        "evaluate.repeats",
    ),
    parts=("test",),
    measures_machine=True,
)
