"""What normalizing a picture costs: in the file (export.input=uint8), and before one that takes floats.

    OMP_NUM_THREADS=1 python -m benchmarks.picture_in speed resnet18 openvino [pixels]
    python -m benchmarks.picture_in accuracy +experiment=resnet18_mnist      # any overrides of python -m pipeline

`speed`: an RGB picture, batch 1, one thread; random weights, calibrated on random images, int8 by the backend of that
name in the runtime that it is for. All in one loop, turn by turn: the file that takes the picture, and the one that
takes floats, alone, after the lines of docs/serving.md (numpy), and after torchvision's. Prints how far the two files'
outputs are apart, and the ratios of the medians (of the processor's time) with their 95 % intervals.

`accuracy`: one float training, then PTQ by a backend for each runtime that is installed; both files of each on the
whole test part.
"""

from __future__ import annotations

import functools
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from benchmarks.untrained import normalized, quantized
from pipeline import models, runtimes
from pipeline.commands.composition import compose_request
from pipeline.datasets import catalogue
from pipeline.flows import forms
from pipeline.host.errors import UserError
from pipeline.host.machine import UNSHARED
from pipeline.measure import latency
from pipeline.run.runner import run
from pipeline.runtimes import parity
from pipeline.runtimes.picture_in import taking_pictures
from pipeline.tasks import catalogue as tasks

# By runtime, the backend that quantizes for it.
_BACKENDS = {"torchscript": "fbgemm"} | {name: name for name in ("onnxruntime", "openvino", "inductor", "executorch")}
_QUICK = ("benchmark.passes=6", "benchmark.min_repeats=240", "benchmark.max_seconds=60")


def speed(name: str, backend: str, pixels: str = "32") -> None:
    """Print a line for each way to the same answer."""
    from torchvision.transforms import functional  # beside its operators, which pipeline.models has declared

    torch.set_num_threads(1)
    asked = ["dataset=cifar10", f"dataset.image_size={pixels}", f"model={name}", f"backend={backend}", *_QUICK]
    config = compose_request(asked).config
    size, mean, std = config.dataset.image_size, config.dataset.mean, config.dataset.std
    torch.manual_seed(0)
    pictures = torch.randint(0, 256, (16, size, size, 3), dtype=torch.uint8)
    images = ((pictures.permute(0, 3, 1, 2).float() / 255 - _column(mean)) / _column(std)).contiguous()
    info, runtime = catalogue.info(config.dataset), runtimes.find(backend)
    int8 = quantized(normalized(models.build(config.model, info), images), [images], config, info)
    with tempfile.TemporaryDirectory() as made:
        floats, as_pictures = Path(made) / "floats", Path(made) / "pictures"
        for folder in (floats, as_pictures):
            folder.mkdir()
        runtime.export(int8, images[:1], floats)
        runtime.export(taking_pictures(int8, size, mean, std), pictures[:1], as_pictures)
        expected, found = runtime.load(floats, 1)(images.numpy()), runtime.load(as_pictures, 1)(pictures.numpy())
        print(
            f"{name} at {size} px, {backend}: outputs up to {np.abs(expected).max():.2f} differ by "
            f"{np.abs(found - expected).max():.2g} at most",
            flush=True,
        )
        picture = pictures[0].numpy()

        def picture_in() -> latency.Call:
            return functools.partial(runtime.load(as_pictures, 1), picture[None])

        def after_nothing() -> latency.Call:
            return functools.partial(runtime.load(floats, 1), images[:1].numpy())

        def after_numpy() -> latency.Call:
            predict = runtime.load(floats, 1)

            def call() -> np.ndarray:
                batch = (np.atleast_3d(picture / 255) - mean) / std
                return predict(batch.transpose(2, 0, 1)[None].astype("float32"))

            return call

        def after_torchvision() -> latency.Call:
            predict = runtime.load(floats, 1)
            return lambda: predict(functional.normalize(functional.to_tensor(picture), mean, std)[None].numpy())

        ways = {
            "picture in": picture_in,
            "floats in, alone": after_nothing,
            "floats in, after numpy": after_numpy,
            "floats in, after torchvision": after_torchvision,
        }
        # On one thread nothing waits, so the processor's time tells what the clock does, whoever else works here.
        samples = latency.take_turns_afresh(ways, config.benchmark, time.process_time).samples_ms
    for way, passes in samples.items():
        ratio, low, high = latency.ratio_interval(samples["picture in"], passes)
        print(f"  picture in takes {ratio:.3f} [{low:.3f}, {high:.3f}] of the time of: {way}", flush=True)


def accuracy(*overrides: str) -> None:
    """Print a row for each runtime: the accuracies of both int8 files, and how far they are apart."""
    for name, backend in _BACKENDS.items():
        runtime = runtimes.find(name)
        try:
            runtimes.check_runtimes([name], ["export"])
        except UserError as error:  # not installed
            print(error, flush=True)
            continue
        request = compose_request([*overrides, f"backend={backend}", "tracking=off", "stages=[train,ptq]"])
        checkpoint = run(request).artifacts["ptq"].product
        config, task = request.config, tasks.find(request.config.task)
        int8 = forms.load("ptq_int8", checkpoint, config, catalogue.info(config.dataset)).eval()
        test, size = catalogue.load_test(config.dataset), config.dataset.image_size
        floats = torch.zeros(1, len(config.dataset.mean), size, size)
        pictures = torch.zeros(1, size, size, len(config.dataset.mean), dtype=torch.uint8)
        both = {
            False: (int8, floats),
            True: (taking_pictures(int8, size, config.dataset.mean, config.dataset.std), pictures),
        }
        outputs = {}
        for as_pictures, (model, example) in both.items():
            with tempfile.TemporaryDirectory() as folder:
                runtime.export(model, example, Path(folder))
                predict = runtime.load(Path(folder), torch.get_num_threads())
                batch = config.evaluate.batch_size
                outputs[as_pictures] = parity.outputs(predict, test, config.dataset, batch, name, UNSHARED, as_pictures)
        found = parity.compare(outputs[True], outputs[False], test.labels, task)
        print(
            f"{name}: floats in {parity.value(outputs[False], test.labels, task):.2f}, picture in {found.value:.2f}, "
            f"the same class on {found.agreement_pct:.2f} % of {len(test)} images, outputs differ by "
            f"{found.max_difference:.2g} at most",
            flush=True,
        )


def _column(numbers: list[float]) -> torch.Tensor:
    return torch.tensor(numbers).view(-1, 1, 1)


if __name__ == "__main__":
    {"speed": speed, "accuracy": accuracy}[sys.argv[1]](*sys.argv[2:])
