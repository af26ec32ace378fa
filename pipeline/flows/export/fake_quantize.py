"""The fake-quantize module that torchao inserts for this flow, and the switching of those in a prepared model."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn
from torchao.quantization.pt2e import fake_quantize, observer

from pipeline.flows import simulation
from pipeline.host.world import World


class FakeQuantize(fake_quantize.FakeQuantize):
    """An observer, and fake-quantize with the scale and zero point that convert will write, computed vectorized.

    `world`: the processes whose activations make up a batch; None where all of it is here, as weights always are.
    """

    world: World | None = None

    def forward(self, X: Tensor, factor: Tensor | None = None) -> Tensor:
        """Fake-quantize `X`, or its product with a factor a channel (C)."""
        if not isinstance(self.activation_post_process, observer.HistogramObserver):
            return simulation.simulate(self, X, factor, self.world)
        if self.observer_enabled.item():
            self.activation_post_process(X.detach())
            if self.fake_quant_enabled.item():
                self.settle()
        with observers_off(self):
            return simulation.simulate(self, X, factor, None)

    def settle(self) -> None:
        """Take scale and zero point from what the observer has seen, which for a histogram is a search."""
        simulation.settle(self)

    @property
    def has_seen(self) -> bool:
        """Whether the observer has a range."""
        low: Any = self.activation_post_process.min_val
        return low.numel() > 0 and bool(low.isfinite().all())

    def calculate_qparams(self) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        """Scale and zero point as they are simulated, for torchao's convert."""
        return self.scale, self.zero_point


def fake_quantizes(model: nn.Module) -> list[FakeQuantize]:
    """Every fake-quantize module, each once."""
    return [module for module in model.modules() if isinstance(module, FakeQuantize)]


@contextmanager
def observers_off(model: nn.Module) -> Iterator[None]:
    """Keep the ranges as they are within the block."""
    with simulation.switched_off(fake_quantizes(model), "observer_enabled"):
        yield


@contextmanager
def fake_quantize_off(model: nn.Module) -> Iterator[None]:
    """Compute in float within the block, the observers as they are: what calibration must see."""
    with simulation.switched_off(fake_quantizes(model), "fake_quant_enabled"):
        yield
    settle(model)


def settle(model: nn.Module) -> None:
    """Let every fake-quantize module compute with what its observer has seen."""
    for module in fake_quantizes(model):
        if module.has_seen:
            module.settle()


OBSERVERS: dict[str, Any] = {
    "moving_average": observer.MovingAverageMinMaxObserver,
    "histogram": observer.HistogramObserver,
    "min_max": observer.MinMaxObserver,
}


def weight_observer(per_channel: bool, moving: bool) -> Any:
    """What observes weights: for training their moving average, as eager mode does, else their extremes."""
    if per_channel:
        return observer.MovingAveragePerChannelMinMaxObserver if moving else observer.PerChannelMinMaxObserver
    return observer.MovingAverageMinMaxObserver if moving else observer.MinMaxObserver
