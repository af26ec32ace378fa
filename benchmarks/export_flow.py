"""The export flow beside the eager one: what a step of QAT costs, and the accuracies of the four networks with a twin.

    OMP_NUM_THREADS=1 python -m benchmarks.export_flow step
    OMP_NUM_THREADS=1 python -m benchmarks.export_flow accuracy OUTPUTS [overrides of python -m pipeline]

`step`: ResNet-18, 32 px, batch 64. The float network, both flows and torchao's own QAT take turns in one loop; the
processor's time of this process counts, so that other programs disturb little. Both flows with BatchNorm's statistics
frozen, as the default recipe has them, and with those of the batch; the forward pass of distillation's teacher, which
the recipe adds to fine-tuning and QAT alike, is in no step.

`accuracy`: one float training of each network that has a twin, or of the one that is named (`model=NAME`), then PTQ and
QAT of that model by both flows, on bundled digits where nothing else is said.
"""

from __future__ import annotations

import itertools
import sys
import time
from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as functional
from torch import nn

from pipeline import models
from pipeline.commands.composition import compose_request
from pipeline.datasets import catalogue
from pipeline.flows import catalogue as flows
from pipeline.host.files import resolved
from pipeline.measure import latency
from pipeline.measure.statistics import paired_interval
from pipeline.run.request import Request
from pipeline.run.runner import artifacts_of, run

_ROUNDS, _WARMUP, _BATCH = 20, 3, 64
# Those with a twin: of each, the images' side, the epochs of float training and its batch size; half an hour of one
# core in all. MobileNetV3's BatchNorm follows its batches by a hundredth a step: it is of use after a thousand.
_NETWORKS = {
    "resnet18": (32, 4, 64),
    "mobilenet_v2": (32, 10, 64),
    "mobilenet_v3_large": (32, 16, 16),
    "blog_resnet18": (65, 3, 64),
}


def step() -> None:
    """Print how long a training step of each takes, and its ratio to the float step."""
    torch.set_num_threads(1)
    calls = {
        "float": _float(),
        "eager": _flow("fbgemm", frozen=True),
        "eager, statistics of the batch": _flow("fbgemm", frozen=False),
        "export": _flow("openvino", frozen=True),
        "export, statistics of the batch": _flow("openvino", frozen=False),
        "torchao, statistics of the batch": _torchao(),
    }
    rounds = list(itertools.islice(latency.rounds_of(calls, time.process_time), _WARMUP + _ROUNDS))[_WARMUP:]
    # As if each round were a pass: in training nothing stays where it lies.
    taken = {name: [[one[name]] for one in rounds] for name in calls}
    for name, samples in taken.items():
        ratio, low, high = latency.ratio_interval(samples, taken["float"])
        print(
            f"{name:33} {latency.median_interval(samples)[0]:7.0f} ms  {ratio:.2f} [{low:.2f}, {high:.2f}] float steps"
        )


def _stepper(model: nn.Module) -> Callable[[], None]:
    images, labels = torch.randn(_BATCH, 1, 32, 32), torch.randint(10, (_BATCH,))
    optimizer = torch.optim.AdamW(model.parameters(), 1e-4, fused=True)

    def call() -> None:
        optimizer.zero_grad()
        functional.cross_entropy(model(images), labels).backward()
        optimizer.step()

    return call


def _float() -> Callable[[], None]:
    config = compose_request([]).config
    return _stepper(models.build(config.model, catalogue.info(config.dataset)).train())


def _flow(backend: str, frozen: bool) -> Callable[[], None]:
    config = compose_request([f"backend={backend}"]).config
    info, flow = catalogue.info(config.dataset), flows.find(config.backend)
    model = flow.prepare(flow.fuse(models.build(config.model, info), config, info), config)
    flow.set_mode(model, training=True)
    flow.freeze(model, batch_norm=frozen, ranges=False)
    return _stepper(model)


def _torchao() -> Callable[[], None]:
    from torchao.quantization.pt2e import move_exported_model_to_train
    from torchao.quantization.pt2e.quantize_pt2e import prepare_qat_pt2e
    from torchao.quantization.pt2e.quantizer import x86_inductor_quantizer as x86

    config = compose_request([]).config
    network = models.build(config.model, catalogue.info(config.dataset))
    batch = torch.export.Dim("batch", min=1, max=4096)
    example = (torch.randn(2, 1, 32, 32),)
    exported = torch.export.export(network, example, dynamic_shapes=({0: batch},), strict=True).module()
    quantizer = x86.X86InductorQuantizer()
    quantizer.set_global(x86.get_default_x86_inductor_quantization_config(is_qat=True))
    return _stepper(move_exported_model_to_train(prepare_qat_pt2e(exported, quantizer)))


def accuracy(outputs: str, *overrides: str) -> None:
    """Print the test accuracies of each network by both flows, and the paired intervals of their differences."""
    named = [text.removeprefix("model=") for text in overrides if text.startswith("model=")]
    for name, (size, epochs, batch) in _NETWORKS.items():
        if named and name not in named:
            continue
        asked = [f"model={name}", f"dataset.image_size={size}", f"train.epochs={epochs}", f"train.batch_size={batch}"]
        asked += ["qat.epochs=1", *overrides, f"outputs={outputs}", "tracking=off"]
        asked += ["stages=[train,fuse,ptq,qat,convert,evaluate]"]
        eager, export = (_decided(compose_request([*asked, f"backend={each}"])) for each in ("fbgemm", "openvino"))
        images = len(eager["labels"])
        print(f"{name}, {size} px, {images} images: fp32 {100 * eager['fp32'].mean():.2f} %", end="")
        print("" if np.array_equal(eager["fp32"], export["fp32"]) else ", by the flows' float models NOT the same")
        for form in ("ptq_int8", "int8"):
            won, lost = (int((one[form] & ~other[form]).sum()) for one, other in ((export, eager), (eager, export)))
            low, high = paired_interval(won, lost, images)
            print(
                f"  {form:8} eager {100 * eager[form].mean():.2f} %  export {100 * export[form].mean():.2f} %", end=""
            )
            print(f"  won {won}, lost {lost}: [{low:.2f}, {high:.2f}] points", flush=True)


def _decided(request: Request) -> dict[str, np.ndarray]:
    """Of each form, which test images a run gets right."""
    run(request)
    (name,) = (name for name in artifacts_of(request.config) if name.startswith("evaluate-"))
    found = np.load(resolved(request.config.outputs) / "artifacts" / name / "predictions.npz")
    return {form: found[form] == found["labels"] for form in ("fp32", "ptq_int8", "int8")} | {"labels": found["labels"]}


if __name__ == "__main__":
    {"step": step, "accuracy": accuracy}[sys.argv[1]](*sys.argv[2:])
