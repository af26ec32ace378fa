"""Our int8 models against those that onnxruntime's and OpenVINO's own quantizers make from the same float model.

    pip install -e '.[onnxruntime,openvino]' nncf
    python -m benchmarks.quantizers model=resnet18 dataset=mnist        # any overrides of python -m pipeline

Runs the pipeline up to `export` (what is done already is not repeated), then lets `quantize_static` and NNCF quantize
the exported float model, calibrated on the training images that the stage `ptq` would take. Everything is timed turn
by turn in one loop, by the method of docs/latency.md, and judged on the whole test part.

    python -m benchmarks.quantizers speed model=timm model.arch=efficientnet_b0

Untrained, after PTQ by every backend that can take the network, at 224 px: where each quantizer puts its pairs of
quantize and dequantize decides what is told here, and no number of the network does. No accuracy is. The processor's
time of this process counts, so that other programs disturb little.
"""

from __future__ import annotations

import copy
import functools
import importlib.util
import logging
import os
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from tabulate import tabulate
from torch import Tensor, nn

from benchmarks.untrained import normalized, quantized
from pipeline import models
from pipeline.commands.composition import compose_request
from pipeline.datasets import catalogue
from pipeline.datasets.loader import evaluation_batches
from pipeline.datasets.spec import Part
from pipeline.host import environment
from pipeline.host.errors import UserError
from pipeline.host.files import resolved
from pipeline.host.machine import UNSHARED
from pipeline.measure import latency
from pipeline.measure.measurement import threads as kept_threads
from pipeline.measure.statistics import accuracy_interval
from pipeline.run.request import Request
from pipeline.run.runner import artifacts_of, run
from pipeline.runtimes import Predictor, parity, registry
from pipeline.settings.config import Config
from pipeline.training import calibration

_CPU = torch.device("cpu")
_STAGES = "stages=[train,fuse,qat,convert,evaluate,export]"
_BATCH = 64
# Of `speed`, before what is typed: a few bundled images.
_UNTRAINED = (
    "backend=openvino",
    "dataset.image_size=224",
    "dataset.max_test_samples=10",
    "ptq.calibration_samples=16",
    "ptq.batch_size=8",
)
# By backend, the runtimes that it is for.
_BACKENDS = {
    "openvino": ("openvino",),
    "onnxruntime": ("onnxruntime",),
    "fbgemm": ("openvino", "onnxruntime"),
}


@dataclass(frozen=True)
class Candidate:
    """A model on a runtime: who quantized it (`ours`, or the quantizer with its settings), and where it is."""

    by: str
    runtime: str
    folder: Path

    @property
    def name(self) -> str:
        return f"{self.by} | {self.runtime}"

    def load(self, threads: int) -> Predictor:
        return registry()[self.runtime].load(self.folder, threads)


def main(arguments: list[str]) -> None:
    """Run, quantize, measure, print the table and write it into the folder of outputs."""
    warnings.filterwarnings("ignore")
    logging.disable(logging.WARNING)
    if importlib.util.find_spec("nncf") is None:
        sys.exit("error: NNCF is not installed here; pip install nncf brings it")
    try:
        if arguments[:1] == ["speed"]:
            request = compose_request([*_UNTRAINED, *arguments[1:]])
            text = compare_untrained(request.config, arguments[1:])
        else:
            request = compose_request([*arguments, _STAGES, "runtime=all"])
            run(request)
            text = compare(request)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    print(text)
    output = resolved(request.config.outputs) / "quantizers.md"
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(text)


def compare(request: Request) -> str:
    """The table of a finished run, for each number of threads in `benchmark.threads`."""
    config = request.config
    (export,) = (name for name in artifacts_of(config) if name.startswith("export-"))
    exports = resolved(config.outputs) / "artifacts" / export
    test = catalogue.load_test(config.dataset)
    with tempfile.TemporaryDirectory() as made:
        candidates = [
            Candidate(f"ours, {form}", name, exports / form / name)
            for form in ("fp32", "int8")
            for name in ("torchscript", "onnxruntime", "openvino")
            if (exports / form / name).is_dir()  # has parity
        ]
        float_file = exports / "fp32" / "onnxruntime" / registry()["onnxruntime"].file
        candidates += _quantize(float_file, config, Path(made), _onnxruntime_settings())
        accuracies = {candidate.name: _accuracy(candidate, test, config) for candidate in candidates}
        return _tables(candidates, accuracies, test, config, time.perf_counter)


def compare_untrained(config: Config, overrides: list[str]) -> str:
    """The table of a network with random weights, quantized after training by each backend that can take it."""
    info = catalogue.info(config.dataset)
    training, _ = catalogue.load_training(config.dataset)
    part = calibration.choose(training, config.ptq.calibration_samples, config.seed)
    batches = [images for images, _ in evaluation_batches(part, config.dataset, config.ptq.batch_size, _CPU)]
    torch.manual_seed(config.seed)
    network = normalized(models.build(config.model, info), batches[0])
    with tempfile.TemporaryDirectory() as made:
        candidates = list(_export(network, "ours, fp32", ("openvino", "onnxruntime"), batches[0][:1], Path(made)))
        for backend, runtimes in _BACKENDS.items():
            try:
                chosen = compose_request([*_UNTRAINED, *overrides, f"backend={backend}"]).config
                int8 = quantized(copy.deepcopy(network), batches, chosen, info)
            except UserError:
                continue  # it has no quantizable twin
            candidates += _export(int8, f"ours, int8 of {backend}", runtimes, batches[0][:1], Path(made))
        fp32 = next(one.folder for one in candidates if one.runtime == "onnxruntime")
        theirs = {name: settings for name, settings in _onnxruntime_settings().items() if "min-max" in name}
        candidates += _quantize(fp32 / registry()["onnxruntime"].file, config, Path(made), theirs)
        return _tables(candidates, None, catalogue.load_test(config.dataset), config, time.process_time)


def _export(model: nn.Module, by: str, runtimes: Sequence[str], example: Tensor, made: Path) -> Iterator[Candidate]:
    for runtime in runtimes:
        folder = made / f"{by} {runtime}"
        folder.mkdir()
        registry()[runtime].export(model, example, folder)
        yield Candidate(by, runtime, folder)


# --- their quantizers


def _quantize(float_file: Path, config: Config, made: Path, ways: dict[str, dict[str, object]]) -> Iterator[Candidate]:
    """What NNCF makes of a float model, and `quantize_static` by these settings."""
    training, _ = catalogue.load_training(config.dataset)
    part = calibration.choose(training, config.ptq.calibration_samples, config.seed)
    for name, settings in ways.items():
        folder = made / f"ort{len(list(made.iterdir()))}"
        folder.mkdir()
        _quantize_by_onnxruntime(float_file, folder / registry()["onnxruntime"].file, part, config, settings)
        yield Candidate(f"quantize_static, {name}", "onnxruntime", folder)
    for preset in ("performance", "mixed"):
        folder = made / f"nncf_{preset}"
        folder.mkdir()
        _quantize_by_nncf(float_file, folder / registry()["openvino"].file, part, config, preset)
        yield Candidate(f"NNCF, {preset}", "openvino", folder)


def _onnxruntime_settings() -> dict[str, dict[str, object]]:
    """What its documentation offers for a CPU: signed or unsigned activations, ranges by three methods."""
    from onnxruntime.quantization import CalibrationMethod, QuantType

    def settings(activations: QuantType, method: CalibrationMethod, per_channel: bool) -> dict[str, object]:
        return {"activation_type": activations, "calibrate_method": method, "per_channel": per_channel}

    return {
        "u8, min-max, per channel": settings(QuantType.QUInt8, CalibrationMethod.MinMax, True),
        "s8, min-max, per channel": settings(QuantType.QInt8, CalibrationMethod.MinMax, True),
        "u8, entropy, per channel": settings(QuantType.QUInt8, CalibrationMethod.Entropy, True),
        "u8, percentile, per channel": settings(QuantType.QUInt8, CalibrationMethod.Percentile, True),
        "u8, min-max, per tensor": settings(QuantType.QUInt8, CalibrationMethod.MinMax, False),
    }


def _quantize_by_onnxruntime(
    float_file: Path, file: Path, part: Part, config: Config, settings: dict[str, object]
) -> None:
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Reader(CalibrationDataReader):
        def __init__(self) -> None:
            self._batches = evaluation_batches(part, config.dataset, 1, _CPU)

        def get_next(self) -> dict[str, np.ndarray] | None:
            batch = next(self._batches, None)
            return None if batch is None else {"image": batch[0].numpy()}

    prepared = file.with_name("prepared.onnx")
    quant_pre_process(float_file, prepared)
    quantize_static(prepared, file, Reader(), quant_format=QuantFormat.QDQ, weight_type=QuantType.QInt8, **settings)
    prepared.unlink()


def _quantize_by_nncf(float_file: Path, file: Path, part: Part, config: Config, preset: str) -> None:
    import nncf
    import openvino

    batches = [images.numpy() for images, _ in evaluation_batches(part, config.dataset, 1, _CPU)]
    quantized = nncf.quantize(
        openvino.Core().read_model(float_file),
        nncf.Dataset(batches),
        preset=nncf.QuantizationPreset(preset),
        target_device=nncf.TargetDevice.CPU,
        subset_size=len(batches),
    )
    openvino.save_model(quantized, file, compress_to_fp16=False)


# --- the measurement


def _accuracy(candidate: Candidate, test: Part, config: Config) -> float:
    """In percent, of the whole test part."""
    predictor = candidate.load(torch.get_num_threads())
    logits = parity.outputs(predictor, test, config.dataset, _BATCH, candidate.by, UNSHARED)
    return 100 * float((logits.argmax(1) == test.labels.numpy()).mean())


def _tables(
    candidates: list[Candidate], accuracies: dict[str, float] | None, test: Part, config: Config, clock: latency.Clock
) -> str:
    """A table for each number of threads, under what was measured."""
    name, dataset = config.model.arch or config.model.name, config.dataset
    heading = f"{environment.cpu_name()}; {name}, {dataset.name}, {dataset.image_size} px"
    tables = [_table(candidates, accuracies, test, config, threads, clock) for threads in config.benchmark.threads]
    return f"{heading}\n\n" + "\n\n".join(tables) + "\n"


def _table(
    candidates: list[Candidate],
    accuracies: dict[str, float] | None,
    test: Part,
    config: Config,
    threads: int,
    clock: latency.Clock,
) -> str:
    image = next(evaluation_batches(test, config.dataset, 1, _CPU))[0].numpy()

    def loader(candidate: Candidate) -> latency.Loader:
        return lambda: functools.partial(candidate.load(threads), image)

    settings = config.benchmark
    with kept_threads():
        loaders = {candidate.name: loader(candidate) for candidate in candidates}
        taken = latency.take_turns_afresh(loaders, settings, clock)
    samples = taken.samples_ms
    ours = [candidate.name for candidate in candidates if candidate.by.startswith("ours, int8")]
    recommended = min(ours, key=lambda name: latency.median_interval(samples[name])[0])
    rows = []
    for candidate in candidates:
        middle, low, high = latency.median_interval(samples[candidate.name])
        ratio = latency.ratio_interval(samples[recommended], samples[candidate.name])
        judged = []
        if accuracies is not None:
            accuracy = accuracies[candidate.name]
            judged = [f"{accuracy:.2f}", "[{:.2f}, {:.2f}]".format(*accuracy_interval(accuracy, len(test)))]
        timed = [f"{middle:.3f}", f"[{low:.3f}, {high:.3f}]", "{:.2f} [{:.2f}, {:.2f}]".format(*ratio)]
        rows.append((middle, [candidate.by, candidate.runtime, *judged, *timed]))
    names = ["accuracy %", "95 % interval"] if accuracies is not None else []
    headers = ["quantized by", "runtime", *names, "median ms", "95 % interval", "ours / this"]
    table = tabulate(
        [row for _, row in sorted(rows)],
        headers,
        tablefmt="github",
        disable_numparse=True,
        colalign=["left", "left", *["right"] * (len(headers) - 2)],
    )
    end = "" if not taken.timed_out else f", ended by benchmark.max_seconds={settings.max_seconds:g}"
    where = f"{threads} thread{'s' if threads > 1 else ''}, batch 1"
    what = f"{taken.rounds} rounds in {settings.passes} passes{end}; ours, the recommended: {recommended}"
    return f"{where}, {what}\n\n{table}"


if __name__ == "__main__":
    os.environ.setdefault("NNCF_CI", "1")  # so that it reports nothing to its maker
    main(sys.argv[1:])
