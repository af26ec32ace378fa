"""The export flow beside the eager one: what a step of QAT costs, and the accuracies of the four networks with a twin.

    OMP_NUM_THREADS=1 python -m benchmarks.export_flow step
    python -m benchmarks.export_flow accuracy [epochs of QAT] [outputs]

`step`: ResNet-18, 32 px, batch 64. The float network, both flows and torchao's own QAT take turns in one loop; the
processor's time of this process counts, so that other programs disturb little. `accuracy`: one float training of each
network, then QAT by both flows on bundled digits, and McNemar's exact test between their int8 models.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as functional
from torch import nn

from pipeline import models
from pipeline.commands.composition import compose_request
from pipeline.datasets import catalogue
from pipeline.flows import catalogue as flows
from pipeline.measure.statistics import mcnemar_p
from pipeline.run.runner import run

_ROUNDS, _WARMUP, _BATCH = 20, 3, 64
_NETWORKS = ("resnet18", "mobilenet_v2", "mobilenet_v3_large", "blog_resnet18")


def step() -> None:
    """Print the median of a training step of each, and its ratio to the float step."""
    torch.set_num_threads(1)
    taken: dict[str, list[float]] = {}
    calls = {"float": _float(), "eager": _flow("fbgemm"), "export": _flow("openvino"), "torchao": _torchao()}
    for turn in range(_WARMUP + _ROUNDS):
        for name, call in list(calls.items())[:: 1 if turn % 2 else -1]:
            started = time.process_time()
            call()
            if turn >= _WARMUP:
                taken.setdefault(name, []).append(1000 * (time.process_time() - started))
    for name, samples in sorted(taken.items(), key=lambda item: statistics.median(item[1])):
        ratio = statistics.median(one / base for one, base in zip(samples, taken["float"], strict=True))
        print(f"{name:8} {statistics.median(samples):8.1f} ms  {ratio:5.2f} float steps")


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


def _flow(backend: str) -> Callable[[], None]:
    config = compose_request([f"backend={backend}"]).config
    info, flow = catalogue.info(config.dataset), flows.find(config.backend)
    model = flow.prepare(flow.fuse(models.build(config.model, info), config, info), config)
    flow.set_mode(model, training=True)
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


def accuracy(epochs: str = "1", outputs: str = "outputs/export_flow") -> None:
    """Print the test accuracies of each network by both flows, and whether their int8 models differ."""
    for name in _NETWORKS:
        size = 80 if name == "blog_resnet18" else 32
        decided, shown = {}, []
        for backend in ("fbgemm", "openvino"):
            asked = [f"model={name}", f"backend={backend}", f"qat.epochs={epochs}", f"dataset.image_size={size}"]
            metrics = run(compose_request([*asked, f"outputs={outputs}", "tracking=off"])).metrics
            folder = max((Path(outputs) / "artifacts").glob("evaluate-*"), key=lambda path: path.stat().st_mtime)
            found = np.load(folder / "predictions.npz")
            decided[backend] = found["int8"] == found["labels"]
            shown.append(f"{backend} {metrics['int8/accuracy_pct']:.2f} %")
        lost, won = (int((one & ~other).sum()) for one, other in (decided.values(), list(decided.values())[::-1]))
        print(
            f"{name:20} fp32 {metrics['fp32/accuracy_pct']:.2f} %  {'  '.join(shown)}  p = {mcnemar_p(lost, won):.2g}"
        )


if __name__ == "__main__":
    {"step": step, "accuracy": accuracy}[sys.argv[1]](*sys.argv[2:])
