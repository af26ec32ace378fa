"""Which layers lose most by int8: each one's signal-to-noise ratio, and what of the primary metric hangs on it alone.

Int8 is simulated by one model with fake-quantize modules, calibrated once, that are switched on and off a
layer at a time (Krishnamoorthi 2018, "Quantizing deep convolutional networks for efficient inference",
section 3, and Wu et al. 2020, "Integer quantization for deep learning inference", section 5.2, who rank
layers by the accuracy with each alone quantized).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from pipeline.flows.contract import Flow
from pipeline.host import terminal
from pipeline.host.machine import Machine
from pipeline.tasks import Metric
from pipeline.tasks.contract import Task

# Gives the batches of a part anew: images float (B, C, S, S) and targets (B, …).
Batches = Callable[[], Iterable[tuple[Tensor, Tensor]]]


@dataclass(frozen=True)
class LayerSensitivity:
    """What int8 does to one layer, and what it does to the network through that layer.

    Attributes:
        name: as `backend.skip_layers` takes it.
        weight_snr_db: of the float weights against the quantized ones.
        activation_snr_db: of the layer's float output against its output with quantized weights and
            activations, on the same float input.
        alone_int8: the primary metric when this layer alone is quantized, weights and activations.
        alone_float: the same when everything but its weights is quantized, as `backend.skip_layers` does.
    """

    name: str
    weight_snr_db: float
    activation_snr_db: float
    alone_int8: float
    alone_float: float


@dataclass(frozen=True)
class Sensitivity:
    """The layers, worst first, between what the metric is of the float and of the whole quantized network."""

    metric: Metric
    layers: tuple[LayerSensitivity, ...]
    all_float: float
    all_int8: float

    @property
    def rule(self) -> str:
        """How `analyse` ranks, for the reader of a table."""
        return (
            f"ranked by the {self.metric.label} with the layer alone in int8 "
            f"({'lowest' if self.metric.higher_is_better else 'highest'} first), then by the signal-to-noise ratio of "
            "its activations (lowest first)"
        )


@torch.no_grad()
def analyse(
    model: nn.Module, flow: Flow, task: Task, calibration: Batches, validation: Batches, machine: Machine
) -> Sensitivity:
    """Measure every quantizable layer of a simulated, calibrated model, and rank them by `Sensitivity.rule`.

    The primary metric is that of `validation`, signal-to-noise ratios are those of `calibration`. Leaves everything
    quantized and the observers off.
    """
    flow.freeze(model, batch_norm=False, ranges=True)
    layers = flow.layers(model)
    with terminal.bar("sensitivity", 3 + 2 * len(layers), unit="pass") as bar:

        def value() -> float:
            scores = []
            for images, targets in validation():
                with machine.computing():
                    scores.append(task.score(task.decide(model(images)), targets))
            bar.update(1)
            return task.primary.scale * float(torch.cat(scores).double().mean())

        flow.switch_all(model, False)
        snr = _activation_snr_db(model, flow, layers, calibration, machine)
        bar.update(1)
        all_float = value()
        alone_int8 = {}
        for name, layer in layers.items():
            flow.switch(layer, weight=True, activation=True)
            alone_int8[name] = value()
            flow.switch(layer, weight=False, activation=False)
        flow.switch_all(model, True)
        all_int8 = value()
        alone_float = {}
        for name, layer in layers.items():
            flow.switch(layer, weight=False, activation=True)
            alone_float[name] = value()
            flow.switch(layer, weight=True, activation=True)
    with machine.computing():
        weight_snr = {name: _weight_snr_db(layer, flow) for name, layer in layers.items()}
    found = [
        LayerSensitivity(name, weight_snr[name], snr[name], alone_int8[name], alone_float[name]) for name in layers
    ]
    ranked = sorted(found, key=lambda layer: (task.primary.drop(layer.alone_int8, 0), layer.activation_snr_db))
    return Sensitivity(task.primary, tuple(ranked), all_float, all_int8)


def snr_db(signal: float, noise: float) -> float:
    """The ratio of two sums of squares in decibel; infinite without noise."""
    return 10 * math.log10(signal / noise) if signal > 0 and noise > 0 else math.inf if noise == 0 else -math.inf


def _squares(values: Tensor) -> float:
    return float(values.double().square().sum())


def _weight_snr_db(layer: nn.Module, flow: Flow) -> float:
    weight: Tensor = layer.weight  # type: ignore[assignment]
    quantized = flow.quantized_weight(layer)
    return snr_db(_squares(weight), _squares(quantized - weight))


def _activation_snr_db(
    model: nn.Module, flow: Flow, layers: dict[str, nn.Module], batches: Batches, machine: Machine
) -> dict[str, float]:
    """Run the float network, and at each layer, on the same input, that layer quantized."""
    sums = {name: [0.0, 0.0] for name in layers}

    def compare(name: str) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], None]:
        inside = False

        def hook(layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            nonlocal inside
            if inside:  # the call just below
                return
            inside = True
            noise = flow.quantized_output(layer, inputs) - output
            inside = False
            sums[name][0] += _squares(output)
            sums[name][1] += _squares(noise)

        return hook

    handles = [layer.register_forward_hook(compare(name)) for name, layer in layers.items()]
    try:
        for images, _ in batches():
            with machine.computing():
                model(images)
    finally:
        for handle in handles:
            handle.remove()
    return {name: snr_db(signal, noise) for name, (signal, noise) in sums.items()}
