"""The flow that changes nothing: what it calls int8 is the float network."""

from __future__ import annotations

import contextlib
from collections.abc import Callable

from torch import Tensor, nn

from pipeline import models
from pipeline.datasets.spec import DatasetInfo
from pipeline.flows import Form
from pipeline.flows.contract import Method
from pipeline.host.world import World
from pipeline.settings.config import Config


class Identity:
    def check(self, config: Config, info: DatasetInfo) -> None: ...

    def modules_of(self, config: Config) -> list[str]:
        return [__name__]

    def describe(self, config: Config, method: Method) -> dict[str, str]:
        return {"activation": "float", "weight": "float"}

    def warning(self, config: Config) -> str | None:
        return None

    def unfaithful(self, config: Config) -> str | None:
        return None

    def runtime(self, config: Config) -> str | None:
        return None

    def int8_products(self, side: int) -> dict[str, Callable[[], object]]:
        return {}

    def fuse(self, model: nn.Module, config: Config, info: DatasetInfo) -> nn.Module:
        return model

    def prepare(self, fused: nn.Module, config: Config) -> nn.Module:
        return fused

    def prepare_ptq(self, model: nn.Module, config: Config, info: DatasetInfo) -> nn.Module:
        return model

    def prepare_simulation(self, model: nn.Module, config: Config, info: DatasetInfo) -> nn.Module:
        return model

    def takes_ranges(self, config: Config) -> bool:
        return True

    def take_ranges(self, prepared: nn.Module, calibrated: nn.Module) -> None: ...

    def convert(self, prepared: nn.Module, config: Config) -> nn.Module:
        return prepared.cpu().eval()

    def rebuild(self, form: Form, config: Config, info: DatasetInfo) -> nn.Module:
        return models.build(config.model, info)

    def set_mode(self, model: nn.Module, training: bool) -> None:
        model.train(training)

    def freeze(self, model: nn.Module, batch_norm: bool, ranges: bool) -> None: ...

    def observers_off(self, model: nn.Module) -> contextlib.AbstractContextManager[None]:
        return contextlib.nullcontext()

    def observe_over_all(self, model: nn.Module, world: World) -> None: ...

    def fake_quantize_off(self, model: nn.Module) -> contextlib.AbstractContextManager[None]:
        return contextlib.nullcontext()

    def layers(self, model: nn.Module) -> dict[str, nn.Module]:
        return {name: module for name, module in model.named_modules() if isinstance(module, nn.Conv2d)}

    def smoothable(self, prepared: nn.Module) -> dict[str, list[str]]:
        return {}

    def quantized_weight(self, layer: nn.Module) -> Tensor:
        return layer.weight

    def switch(self, layer: nn.Module, weight: bool, activation: bool) -> None: ...

    def quantized_output(self, layer: nn.Module, inputs: tuple[Tensor, ...]) -> Tensor:
        return layer(*inputs)  # type: ignore[no-any-return]

    def switch_all(self, model: nn.Module, enabled: bool) -> None: ...


FLOW = Identity()
