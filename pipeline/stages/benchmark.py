"""Measure the float and the int8 models on every runtime, turn by turn in one loop, and how near the limit they come.

What has failed parity is left out. Eager fp32 and int8 are always in the loop, since ratios are to them.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import torch

from pipeline.datasets.loader import evaluation_batches
from pipeline.flows import forms
from pipeline.flows.contract import Form
from pipeline.host import environment, terminal
from pipeline.host.errors import UserError
from pipeline.host.machine import Machine
from pipeline.host.pinning import pinned
from pipeline.measure import latency, roofline
from pipeline.measure.latency import Taken
from pipeline.measure.roofline import Network, Peak
from pipeline.reports import runtime_plots
from pipeline.reports.runtime_report import Measured, runtimes_table
from pipeline.runtimes import EAGER, Predictor, eager, exported_to, memory, parity
from pipeline.settings.config import Config
from pipeline.stages.contract import Inputs, Stage
from pipeline.training.context import Context


def run(config: Config, inputs: Inputs, context: Context) -> None:
    settings = config.benchmark
    method = latency.Method(settings.min_repeats, settings.interval_pct, settings.max_seconds, passes=settings.passes)
    images = _images(config, context)
    rows: list[Measured] = []
    raw: dict[str, dict[str, list[list[float]]]] = {}
    peaks: list[Peak] = []
    with context.machine.measuring(), parity.torch_threads_kept():
        for threads in dict.fromkeys(settings.threads):
            _warn_if_busy()
            with pinned(threads if settings.pin else None):
                peaks.append(roofline.measure_peak(threads))
                for batch_size in dict.fromkeys(settings.batch_sizes):
                    taken = latency.take_turns_afresh(
                        _loaders(config, inputs, context, threads, images[batch_size]), method
                    )
                    _tell_limits(taken, threads, batch_size, config)
                    raw[f"{threads} threads, batch {batch_size}"] = taken.samples_ms
                    rows += _rows(taken, threads, batch_size)
    with context.machine.computing():
        model = forms.load("float", inputs["float"], config, context.info)
        network = Network(
            macs=roofline.count_macs(model, torch.from_numpy(images[1])),
            weights=sum(parameter.numel() for parameter in model.parameters()),
        )
    peak_memory = _peak_memory(config, inputs["exports"], rows, context.machine) if settings.memory else {}
    _report(rows, peaks, network, peak_memory, context)
    context.attach("benchmark_samples_ms.json").write_text(json.dumps(raw))


def _images(config: Config, context: Context) -> dict[int, np.ndarray]:
    """A batch of test images for each size, and one of a single image."""
    test = context.load_test()
    found = {}
    for size in {1, *config.benchmark.batch_sizes}:
        chosen = test.select(np.arange(size) % len(test))
        batch, _ = next(evaluation_batches(chosen, config.dataset, size, torch.device("cpu")))
        found[size] = batch.contiguous().numpy()
    return found


def _loaders(
    config: Config, inputs: Inputs, context: Context, threads: int, images: np.ndarray
) -> dict[str, latency.Loader]:
    """By `<runtime>/<form>`: torch's own models, and every exported file that has parity, to be called on `images`."""
    exports = inputs["exports"]
    predictors: dict[str, Callable[[], Predictor]] = {}
    for form, checkpoint in inputs.items():
        if form != "exports":
            predictors[f"{EAGER}/{forms.PREFIXES[form]}"] = functools.partial(
                _load_eager, form, checkpoint, config, context, threads
            )
    for prefix, verdicts in json.loads((exports / parity.FILE).read_text()).items():
        for runtime in exported_to(config.runtime.names):
            if verdicts[runtime.name]:
                folder = exports / prefix / runtime.name
                predictors[f"{runtime.name}/{prefix}"] = functools.partial(runtime.load, folder, threads)

    def loader(load: Callable[[], Predictor]) -> latency.Loader:
        return lambda: functools.partial(load(), images)

    return {name: loader(load) for name, load in predictors.items()}


def _load_eager(form: Form, checkpoint: Path, config: Config, context: Context, threads: int) -> Predictor:
    return eager.predictor(forms.load(form, checkpoint, config, context.info), threads)


def _rows(taken: Taken, threads: int, batch_size: int) -> list[Measured]:
    samples = taken.samples_ms
    medians = {name: latency.median_interval(passes) for name, passes in samples.items()}
    best = min((name for name in samples if name.endswith("/fp32")), key=lambda name: medians[name][0])
    return [
        Measured(
            runtime=name.split("/")[0],
            form=name.split("/")[1],
            threads=threads,
            batch_size=batch_size,
            median_ms=medians[name],
            p90_ms=float(np.percentile(np.concatenate(passes), 90)),
            p99_ms=float(np.percentile(np.concatenate(passes), 99)),
            to_eager_fp32=latency.ratio_interval(samples[f"{EAGER}/fp32"], passes),
            to_best_fp32=latency.ratio_interval(samples[best], passes),
            best_fp32=best.split("/")[0],
            rounds=taken.rounds,
            passes=len(taken.passes),
        )
        for name, passes in samples.items()
    ]


def _peak_memory(config: Config, exports: Path, rows: list[Measured], machine: Machine) -> dict[tuple[str, str], float]:
    """Of each exported file that was measured, with the fewest threads and images."""
    threads, batch_size = min(config.benchmark.threads), min(config.benchmark.batch_sizes)
    pairs = dict.fromkeys((row.runtime, row.form) for row in rows if row.runtime != EAGER)
    found = {}
    for runtime, form in pairs:
        try:
            with machine.computing():
                found[runtime, form] = memory.peak_memory_mb(exports / form / runtime, threads, batch_size)
        except UserError as error:  # the latencies are measured and shall not be lost for it
            terminal.warn(f"benchmark: {error}")
    return found


def _report(
    rows: list[Measured],
    peaks: list[Peak],
    network: Network,
    peak_memory: Mapping[tuple[str, str], float],
    context: Context,
) -> None:
    by_threads, macs = {peak.threads: peak for peak in peaks}, network.macs
    context.metric("gmacs", macs / 1e9)
    for peak in peaks:
        for what in ("fp32_gmacs", "int8_gmacs", "memory_gbytes"):
            context.metric(f"machine/peak_{what}_t{peak.threads}", getattr(peak, what))
    for row in rows:
        name, peak = f"{row.runtime}/{row.form}", by_threads[row.threads]
        # One thread and one image are the headline; the others say theirs.
        where = "" if (row.threads, row.batch_size) == (1, 1) else f"_t{row.threads}_b{row.batch_size}"
        context.metric(f"{name}/latency{where}_ms", row.median_ms[0])
        context.metric(f"{name}/latency_ci_low{where}_ms", row.median_ms[1])
        context.metric(f"{name}/latency_ci_high{where}_ms", row.median_ms[2])
        context.metric(f"{name}/latency_p90{where}_ms", row.p90_ms)
        context.metric(f"{name}/latency_p99{where}_ms", row.p99_ms)
        context.metric(f"{name}/throughput{where}_ips", row.images_a_second)
        context.metric(f"{name}/times_eager_fp32{where}", row.to_eager_fp32[0])
        context.metric(f"{name}/times_best_fp32{where}", row.to_best_fp32[0])
        context.metric(f"{name}/share_of_peak{where}_pct", row.share_of_peak_pct(macs, peak))
    for (runtime, form), megabytes in peak_memory.items():
        context.metric(f"{runtime}/{form}/peak_memory_mb", megabytes)
    table = runtimes_table(rows, by_threads, macs, peak_memory, environment.cpu_name(), "github")
    context.attach("runtimes.md").write_text(table)
    terminal.say(f"\n{runtimes_table(rows, by_threads, macs, peak_memory, environment.cpu_name(), 'simple')}\n")
    with context.machine.computing():
        runtime_plots.bars(rows, context.attach("runtimes.png"))
        runtime_plots.roofline(rows, by_threads, macs, network.weights, context.attach("roofline.png"))


def _warn_if_busy() -> None:
    share = environment.busy_share()
    if share is not None and share > _BUSY:
        terminal.warn(
            f"benchmark: {100 * share:.0f} % of the processors are at work for others: trust the ratios, which are "
            "taken turn by turn, not the milliseconds"
        )


def _tell_limits(taken: Taken, threads: int, batch_size: int, config: Config) -> None:
    """Say what a loop did not reach, and which setting lets it."""
    where = f"benchmark, {threads} thread{'s' if threads > 1 else ''}, batch {batch_size}"
    if not taken.stable:
        terminal.warn(f"{where}: the times were not stable after {taken.warmup_rounds} rounds of warm-up")
    name, width_pct = taken.widest()
    if width_pct >= config.benchmark.interval_pct:
        # Where the rounds of each pass told enough, what is left is how the passes differ.
        over = f"benchmark.max_seconds={config.benchmark.max_seconds:g} were over: more of them, and "
        terminal.warn(
            f"{where}: after {taken.rounds} rounds in {len(taken.passes)} passes the 95 % interval of {name} is "
            f"{width_pct:.1f} % of its median wide (benchmark.interval_pct={config.benchmark.interval_pct:g}); "
            f"{over if taken.timed_out else ''}more benchmark.passes narrow it"
        )


# The share of the processors that others may use before a measurement is worth a warning.
_BUSY = 0.1


STAGE = Stage(
    name="benchmark",
    run=run,
    sections=("model", "dataset", "backend", "fuse", "runtime", "benchmark", "evaluate"),
    consumes=("float", "int8", "exports"),
    ignores=(
        "dataset.max_train_samples",
        "dataset.validation_fraction",
        "dataset.crop_padding",
        "dataset.horizontal_flip",
        "evaluate.fake_quantized",
        "evaluate.batch_size",
        "evaluate.threads",
        "evaluate.warmup",
        "evaluate.repeats",
    ),
    parts=("test",),
    measures_machine=True,
)
