"""The contract of a flow: how a float network becomes int8.

Stages, training, cache and reports know this contract alone. The forms `float` and `float_finetuned` are the user's
network itself; the others are the flow's. A checkpoint holds a `state_dict`, and `rebuild` makes the graph for it.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Literal, Protocol

from torch import Tensor, nn

from pipeline.datasets.spec import DatasetInfo
from pipeline.flows import Form
from pipeline.host.world import World
from pipeline.settings.config import Config

Method = Literal["qat", "ptq"]


class Trainable(Protocol):
    """What training asks of whoever made a model."""

    def set_mode(self, model: nn.Module, training: bool) -> None:
        """Put a model of any form into training or evaluation mode."""

    def observers_off(self, model: nn.Module) -> AbstractContextManager[None]:
        """Keep the ranges as they are within the block."""

    def observe_over_all(self, model: nn.Module, world: World) -> None:
        """Let ranges go by what the processes of `world` see together."""


class Flow(Trainable, Protocol):
    """A way from float to int8: these functions, in the package that `backend.flow` names, or the user's own.

    Models may be changed in place by whatever is given them to make another one.
    """

    def check(self, config: Config, info: DatasetInfo) -> None:
        """Refuse, before the first stage, what cannot go this way on this machine.

        Raises:
            UserError: naming the key, the value and what is allowed.
        """

    def modules_of(self, config: Config) -> list[str]:
        """The modules whose source computes what the flow makes: they go into the keys of results."""

    def describe(self, config: Config, method: Method) -> dict[str, str]:
        """What the settings came to, for `activation` and for `weight`."""

    def warning(self, config: Config) -> str | None:
        """A line where this processor cannot compute int8 faithfully, or None."""

    def unfaithful(self, config: Config) -> str | None:
        """Why a runtime may compute int8 otherwise than torch on this processor, and the way out; None: no reason."""

    def runtime(self, config: Config) -> str | None:
        """The runtime that int8 is made for, where torch itself only simulates it; None: torch has kernels for it."""

    def int8_products(self, side: int) -> dict[str, Callable[[], object]]:
        """Products of two matrices (side, side) in int8, ready to run, by the kernel that does it; none: it has none.

        They tell what this machine does at most.
        """

    def fuse(self, model: nn.Module, config: Config, info: DatasetInfo) -> nn.Module:
        """The form `fused` of a float network."""

    def prepare(self, fused: nn.Module, config: Config) -> nn.Module:
        """The form `qat`: ready for quantization-aware training."""

    def prepare_ptq(self, model: nn.Module, config: Config, info: DatasetInfo) -> nn.Module:
        """A float network ready for calibration; converted after it, it is the form `ptq_int8`."""

    def prepare_simulation(self, model: nn.Module, config: Config, info: DatasetInfo) -> nn.Module:
        """As `prepare_ptq`, with int8 simulated in float and switchable layer by layer."""

    def takes_ranges(self, config: Config) -> bool:
        """Whether `take_ranges` works for these settings; where not, the prepared model is calibrated itself."""

    def take_ranges(self, prepared: nn.Module, calibrated: nn.Module) -> None:
        """Give a model of `prepare` the ranges of a calibrated one of `prepare_ptq`."""

    def convert(self, prepared: nn.Module, config: Config) -> nn.Module:
        """The int8 model of a prepared one, on the CPU."""

    def rebuild(self, form: Form, config: Config, info: DatasetInfo) -> nn.Module:
        """The graph of `fused`, `qat`, `int8` or `ptq_int8`, to load a `state_dict` into."""

    def freeze(self, model: nn.Module, batch_norm: bool, ranges: bool) -> None:
        """Keep BatchNorm's statistics, or the quantization ranges, as they are, at least until the next `set_mode`."""

    def fake_quantize_off(self, model: nn.Module) -> AbstractContextManager[None]:
        """Compute in float within the block, the observers as they are."""

    def layers(self, model: nn.Module) -> dict[str, nn.Module]:
        """The layers of a prepared model that hold weights and become quantized, by name, in their order."""

    def smoothable(self, prepared: nn.Module) -> dict[str, list[str]]:
        """The LayerNorms, by their path, whose outputs go to `layers` alone, and the names of these, all linear."""

    def quantized_weight(self, layer: nn.Module) -> Tensor:
        """The weight of one of `layers` with int8 simulated in float."""

    def switch(self, layer: nn.Module, weight: bool, activation: bool) -> None:
        """Quantize (simulated) the weights, or the activations that belong to one layer, or leave them float."""

    def quantized_output(self, layer: nn.Module, inputs: tuple[Tensor, ...]) -> Tensor:
        """What one layer, of a model in which nothing is quantized, gives for float inputs when it is quantized."""

    def switch_all(self, model: nn.Module, enabled: bool) -> None:
        """Quantize (simulated) everything in a prepared model, or nothing."""
