"""One network in int8 by each backend of the export flow, in the runtime that the backend is for.

    OMP_NUM_THREADS=1 python -m benchmarks.export_runtimes mobilenet_v2 [pixels]

Random weights, normalized and calibrated on random images; one thread, batch 1, all in one loop, turn by turn. Of each
file: its size, the share of operators that the runtime delegates, where it tells one, how far its outputs are from
those of the converted graph, and its time as a share of that of fp32 in onnxruntime.
"""

from __future__ import annotations

import copy
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
from pipeline.measure import latency

_BASE = "onnxruntime/fp32"
_QUICK = ("benchmark.passes=4", "benchmark.min_repeats=80", "benchmark.max_seconds=60")


def main(name: str, pixels: str = "32") -> None:
    """Print a row for each backend."""
    torch.set_num_threads(1)
    loaders: dict[str, latency.Loader] = {}
    with tempfile.TemporaryDirectory() as made:
        for backend in ("onnxruntime", "openvino", "inductor", "executorch"):
            asked = ["dataset=mnist", f"dataset.image_size={pixels}", f"model={name}", f"backend={backend}", *_QUICK]
            config = compose_request(asked).config
            info, runtime = catalogue.info(config.dataset), runtimes.find(backend)
            torch.manual_seed(0)
            images = torch.randn(16, 1, int(pixels), int(pixels))
            network = normalized(models.build(config.model, info), images)
            int8 = quantized(copy.deepcopy(network), [images], config, info)
            forms = {"fp32": network, "int8": int8} if runtime.name == _BASE.split("/")[0] else {"int8": int8}
            for form, model in forms.items():
                folder = Path(made) / backend / form
                folder.mkdir(parents=True)
                started = time.perf_counter()
                told = runtime.export(model, images[:1], folder) or {}
                seconds = time.perf_counter() - started
                with torch.no_grad():
                    expected = model(images)
                apart = (torch.from_numpy(runtime.load(folder, 1)(images.numpy())) - expected).abs()
                size = sum(path.stat().st_size for path in folder.iterdir()) / 1e6
                print(
                    f"{name} {backend}/{form}: {size:.1f} MB, exported in {seconds:.0f} s, {told}, outputs up to "
                    f"{float(expected.abs().max()):.2f} differ by {float(apart.max()):.2g} at most, "
                    f"{float(apart.mean()):.2g} on average",
                    flush=True,
                )
                loaders[f"{backend}/{form}"] = functools.partial(_load, runtime, folder, images[:1].numpy())
        samples = latency.take_turns_afresh(loaders, config.benchmark).samples_ms
    for one, passes in samples.items():
        ratio, low, high = latency.ratio_interval(passes, samples[_BASE])
        print(f"{name} {one}: {ratio:.2f} [{low:.2f}, {high:.2f}] of the time of {_BASE}", flush=True)


def _load(runtime: runtimes.Runtime, folder: Path, images: np.ndarray) -> latency.Call:
    return functools.partial(runtime.load(folder, 1), images)


if __name__ == "__main__":
    main(*sys.argv[1:])
