"""Our int8 models against those that onnxruntime's and OpenVINO's own quantizers make from the same float model.

    pip install -e '.[onnxruntime,openvino]' nncf
    python -m benchmarks.quantizers model=resnet18 dataset=mnist        # any overrides of python -m pipeline

Runs the pipeline up to `export` (what is done already is not repeated), then lets `quantize_static` and NNCF quantize
the exported float model, calibrated on the training images that the stage `ptq` would take. Everything is timed turn
by turn in one loop, by the method of docs/latency.md, and judged on the whole test part.
"""

from __future__ import annotations

import functools
import logging
import os
import sys
import tempfile
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from tabulate import tabulate

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


def main(overrides: list[str]) -> None:
    """Run, quantize, measure, print the table and write it into the folder of outputs."""
    warnings.filterwarnings("ignore")
    logging.disable(logging.WARNING)
    try:
        request = compose_request([*overrides, _STAGES, "runtime=all"])
        run(request)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    text = compare(request)
    print(text)
    (resolved(request.config.outputs) / "quantizers.md").write_text(text)


def compare(request: Request) -> str:
    """The table of a finished run, for each number of threads in `benchmark.threads`."""
    config = request.config
    (export,) = (name for name in artifacts_of(config) if name.startswith("export-"))
    exports = resolved(config.outputs) / "artifacts" / export
    test, tables = catalogue.load_test(config.dataset), []
    with tempfile.TemporaryDirectory() as made:
        theirs = dict(_quantize(exports / "fp32" / "onnxruntime" / "model.onnx", config, Path(made)))
        candidates = [
            Candidate(f"ours, {form}", name, exports / form / name)
            for form in ("fp32", "int8")
            for name in ("torchscript", "onnxruntime", "openvino")
            if (exports / form / name).is_dir()  # has parity
        ]
        candidates += [Candidate(by, name, folder) for by, (name, folder) in theirs.items()]
        accuracies = {candidate.name: _accuracy(candidate, test, config) for candidate in candidates}
        for threads in config.benchmark.threads:
            tables.append(_table(candidates, accuracies, test, config, threads))
    heading = f"{environment.cpu_name()}; {config.model.name}, {config.dataset.name}, {config.dataset.image_size} px"
    return f"{heading}\n\n" + "\n\n".join(tables) + "\n"


# --- their quantizers


def _quantize(float_file: Path, config: Config, made: Path) -> Iterator[tuple[str, tuple[str, Path]]]:
    """Quantizers' names with the runtime and the folder of what they make."""
    training, _ = catalogue.load_training(config.dataset)
    part = calibration.choose(training, config.ptq.calibration_samples, config.seed)
    for name, settings in _onnxruntime_settings().items():
        folder = made / f"ort{len(list(made.iterdir()))}"
        folder.mkdir()
        _quantize_by_onnxruntime(float_file, folder / registry()["onnxruntime"].file, part, config, settings)
        yield f"quantize_static, {name}", ("onnxruntime", folder)
    for preset in ("performance", "mixed"):
        folder = made / f"nncf_{preset}"
        folder.mkdir()
        _quantize_by_nncf(float_file, folder / registry()["openvino"].file, part, config, preset)
        yield f"NNCF, {preset}", ("openvino", folder)


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


def _table(candidates: list[Candidate], accuracies: dict[str, float], test: Part, config: Config, threads: int) -> str:
    image = next(evaluation_batches(test, config.dataset, 1, _CPU))[0].numpy()

    def loader(candidate: Candidate) -> latency.Loader:
        return lambda: functools.partial(candidate.load(threads), image)

    settings = config.benchmark
    with kept_threads():
        taken = latency.take_turns_afresh({candidate.name: loader(candidate) for candidate in candidates}, settings)
    samples = taken.samples_ms
    ours = [candidate.name for candidate in candidates if candidate.by == "ours, int8"]
    recommended = min(ours, key=lambda name: latency.median_interval(samples[name])[0])
    rows = []
    for candidate in candidates:
        name, accuracy = candidate.name, accuracies[candidate.name]
        middle, low, high = latency.median_interval(samples[name])
        ratio = latency.ratio_interval(samples[recommended], samples[name])
        interval = accuracy_interval(accuracy, len(test))
        rows.append(
            [
                candidate.by,
                candidate.runtime,
                f"{accuracy:.2f}",
                "[{:.2f}, {:.2f}]".format(*interval),
                f"{middle:.3f}",
                f"[{low:.3f}, {high:.3f}]",
                "{:.2f} [{:.2f}, {:.2f}]".format(*ratio),
            ]
        )
    rows.sort(key=lambda row: float(row[4]))
    headers = ["quantized by", "runtime", "accuracy %", "95 % interval", "median ms", "95 % interval", "ours / this"]
    table = tabulate(rows, headers, tablefmt="github", disable_numparse=True, colalign=["left", "left", *["right"] * 5])
    end = "" if not taken.timed_out else f", ended by benchmark.max_seconds={settings.max_seconds:g}"
    where = f"{threads} thread{'s' if threads > 1 else ''}, batch 1"
    what = f"{taken.rounds} rounds in {settings.passes} passes{end}; ours, the recommended: {recommended}"
    return f"{where}, {what}\n\n{table}"


if __name__ == "__main__":
    os.environ.setdefault("NNCF_CI", "1")  # so that it reports nothing to its maker
    main(sys.argv[1:])
