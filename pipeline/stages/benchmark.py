"""Measure the float and the int8 models on every runtime, turn by turn in one loop, and how near the limit they come.

What has failed parity is left out. Eager fp32 and int8 are always in the loop, since ratios are to them.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from pipeline.datasets import catalogue
from pipeline.datasets.loader import evaluation_batches
from pipeline.datasets.preprocessing import PREPROCESSING_FILE, Preprocessing
from pipeline.flows import FORMS, Form, forms
from pipeline.host import environment, terminal
from pipeline.host.errors import UserError
from pipeline.host.pinning import pinned
from pipeline.measure import latency, roofline
from pipeline.measure.latency import Taken
from pipeline.measure.measurement import threads as kept_threads
from pipeline.measure.roofline import Peak
from pipeline.reports import runtime_report
from pipeline.reports.from_file_report import PARTS, Way, ways_table
from pipeline.reports.runtime_report import Measured, runtimes_table
from pipeline.runtimes import EAGER, Predictor, Runtime, eager, exported_to, memory, parity
from pipeline.runtimes import find as find_runtime
from pipeline.runtimes.from_file import FromFile, folder_call, picture_files, threads_for
from pipeline.settings.config import BenchmarkConfig, Config
from pipeline.stages.contract import Inputs, Stage
from pipeline.training.context import Context

# The share of the processors that others may use before a measurement is worth a warning.
_BUSY = 0.1
# Pictures of the folder whose throughput is measured.
_FOLDER_FILES = 32


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
    if settings.source == "file":
        _from_file(config, inputs, context)
    context.attach("benchmark_samples_ms.json").write_text(json.dumps(samples))


@dataclass(frozen=True)
class _Exported:
    """An exported file that has parity."""

    runtime: Runtime
    folder: Path

    def load(self, threads: int) -> Predictor:
        return self.runtime.load(self.folder, threads)


def _exported(config: Config, exports: Path) -> dict[str, _Exported]:
    """By `<runtime>/<form>`."""
    return {
        f"{runtime.name}/{prefix}": _Exported(runtime, exports / prefix / runtime.name)
        for prefix, verdicts in json.loads((exports / parity.FILE).read_text()).items()
        for runtime in exported_to(config.runtime.names)
        if verdicts[runtime.name]
    }


def _from_file(config: Config, inputs: Inputs, context: Context) -> None:
    """Measure the way from picture files to outputs, for every exported file that has parity."""
    settings = config.benchmark
    exported = _exported(config, inputs["exports"])
    preprocessing = Preprocessing.read(next(iter(exported.values())).folder / PREPROCESSING_FILE)
    ways = []
    with tempfile.TemporaryDirectory() as made:
        with context.machine.computing():
            files, told = picture_files(
                config.dataset, context.load_test(), max(_FOLDER_FILES, *settings.batch_sizes), Path(made)
            )
        with context.machine.measuring(), kept_threads():
            for threads in dict.fromkeys(settings.threads):
                with pinned(threads if settings.pin else None):
                    ways += _ways(exported, files, preprocessing, threads, settings)
    for way in ways:
        for name, value in way.metrics().items():
            context.metric(name, value)
    context.attach("from_file.md").write_text(ways_table(ways, told, "github"))
    terminal.say(f"{ways_table(ways, told, 'simple')}\n")


def _ways(
    exported: Mapping[str, _Exported],
    files: list[Path],
    preprocessing: Preprocessing,
    threads: int,
    settings: BenchmarkConfig,
) -> list[Way]:
    """The ways of each batch size; the folder's throughput is that of the largest."""
    batch_sizes = sorted(set(settings.batch_sizes))
    folder = latency.take_turns_afresh(
        {
            name: functools.partial(_folder_call, file, files, preprocessing, threads, batch_sizes[-1])
            for name, file in exported.items()
        },
        dataclasses.replace(settings, min_repeats=settings.passes),
    )
    ways = []
    for batch_size in batch_sizes:
        with threads_for(threads, batch_size) as pool:
            loaders = _way_loaders(FromFile(files[:batch_size], preprocessing, pool), exported, threads)
            samples = latency.take_turns_afresh(loaders, settings).samples_ms
        parts, networks, wholes = (
            {name: samples[f"{kind} {name}"] for name in names}
            for kind, names in (("part", PARTS), ("network", exported), ("whole", exported))
        )
        of_folder = folder.samples_ms if batch_size == batch_sizes[-1] else {}
        ways.append(Way(threads, batch_size, parts, networks, wholes, of_folder, len(files)))
    return ways


def _way_loaders(way: FromFile, exported: Mapping[str, _Exported], threads: int) -> dict[str, latency.Loader]:
    images = way.images()

    def part(name: str) -> latency.Call:
        return way.parts()[name]

    def network(file: _Exported) -> latency.Call:
        return functools.partial(file.load(threads), images)

    def whole(file: _Exported) -> latency.Call:
        predictor = file.load(threads)
        return lambda: predictor(way.images())

    loaders: dict[str, latency.Loader] = {f"part {name}": functools.partial(part, name) for name in PARTS}
    for name, file in exported.items():
        loaders[f"network {name}"] = functools.partial(network, file)
        loaders[f"whole {name}"] = functools.partial(whole, file)
    return loaders


def _folder_call(
    file: _Exported, files: list[Path], preprocessing: Preprocessing, threads: int, batch_size: int
) -> latency.Call:
    return folder_call(files, preprocessing, [file.load(1) for _ in range(threads)], batch_size)


def _loaders(
    config: Config, inputs: Inputs, context: Context, threads: int, images: np.ndarray, for_files: np.ndarray
) -> dict[str, latency.Loader]:
    """By `<runtime>/<form>`: torch's own models, on `images`, and every exported file that has parity, on its own."""

    def load_eager(form: Form) -> Predictor:
        return eager.predictor(forms.load(form, inputs[form], config, context.info), threads)

    def loader(load: Callable[[], Predictor], given: np.ndarray) -> latency.Loader:
        return lambda: functools.partial(load(), given)

    loaders = {
        f"{EAGER}/{form.prefix}": loader(functools.partial(load_eager, form.name), images)
        for form in FORMS
        if form.name in inputs
    }
    for name, file in _exported(config, inputs["exports"]).items():
        loaders[name] = loader(functools.partial(file.load, threads), for_files)
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
