"""Eager-mode quantization as a flow: the functions that `pipeline.flows.contract.Flow` asks for."""

from __future__ import annotations

import re

from torch import nn

from pipeline import models
from pipeline.datasets.spec import DatasetInfo
from pipeline.flows import Form
from pipeline.flows.contract import Method
from pipeline.flows.eager import graph, twins
from pipeline.flows.eager.engines import check_backend, silence_known_warnings
from pipeline.flows.eager.fake_quantize import (
    fake_quantize_off,
    freeze_batch_norm,
    freeze_observers,
    observers_off,
    quantized_output,
    quantized_weight,
    switch,
    switch_all,
)
from pipeline.flows.eager.layers import check_skip_layers
from pipeline.flows.eager.layers import quantizable_layers as layers
from pipeline.flows.eager.qconfig import (
    resolved_ptq_qconfig,
    resolved_qconfig,
    saturation_elsewhere,
    saturation_warning,
)
from pipeline.flows.eager.ranges import take_ranges
from pipeline.flows.eager.vectorized import observe_over_all
from pipeline.flows.processor import int8_products
from pipeline.host.errors import UserCodeError, UserError
from pipeline.settings.config import Config

__all__ = [
    "check",
    "convert",
    "describe",
    "fake_quantize_off",
    "freeze",
    "fuse",
    "int8_products",
    "layers",
    "modules_of",
    "observe_over_all",
    "observers_off",
    "prepare",
    "prepare_ptq",
    "prepare_simulation",
    "quantized_output",
    "quantized_weight",
    "rebuild",
    "runtime",
    "set_mode",
    "smoothable",
    "switch",
    "switch_all",
    "take_ranges",
    "takes_ranges",
    "unfaithful",
    "warning",
]

_NOT_IN_INT8 = re.compile(r"Could not run '(?:aten::)?(\w+)[^']*' with arguments from the 'QuantizedCPU' backend")


def check(config: Config, info: DatasetInfo) -> None:
    silence_known_warnings()
    check_backend(config.backend)
    if config.backend.float_modules:
        names = ",".join(config.backend.float_modules)
        raise UserError(
            f"backend.float_modules=[{names}]: allowed: [] with backend.flow=eager, which leaves layers float, by "
            "backend.skip_layers; or a backend of the export flow"
        )
    twins.check(config.model, info, config.dataset.image_size)
    if config.backend.skip_layers:
        fused = graph.fuse(twins.build(config.model, info), "eval")
        check_skip_layers(config.backend.skip_layers, fused, config.model.name)
    if config.model.quantizable_target is not None:
        _check_runs_in_int8(config, info)


def _check_runs_in_int8(config: Config, info: DatasetInfo) -> None:
    """Refuse a twin of the user's own that computes what torch cannot in int8: else its training is lost in `convert`.

    Raises:
        UserCodeError: with the traceback of its forward.
    """
    what = f"model.quantizable_target={config.model.quantizable_target}"
    int8 = graph.convert(graph.prepare_ptq(twins.build(config.model, info), config.backend), config.backend)
    try:
        models.try_out(f"{what}: converted to int8", int8, info, config.dataset.image_size)
    except UserCodeError as error:
        missing = _NOT_IN_INT8.search(str(error.__cause__))
        if missing is None:
            raise
        raise UserCodeError(
            f"{what}: torch has no int8 {missing[1]}; allowed: FloatFunctional's additions and products, or what is "
            "computed before QuantStub and after DeQuantStub; or backend=openvino, which needs no twin"
        ) from error.__cause__


def modules_of(config: Config) -> list[str]:
    return [__name__, twins.module_of(config.model)]


def describe(config: Config, method: Method) -> dict[str, str]:
    if method == "qat":
        return resolved_qconfig(config.backend)
    return resolved_ptq_qconfig(config.backend, config.ptq.observer)


def warning(config: Config) -> str | None:
    return saturation_warning(config.backend)


def unfaithful(config: Config) -> str | None:
    return saturation_elsewhere(config.backend)


def runtime(config: Config) -> str | None:
    return None


def _twin(model: nn.Module, config: Config, info: DatasetInfo) -> nn.Module:
    """The quantizable twin with a float network's parameters, which have the same names."""
    twin = twins.build(config.model, info)
    twin.load_state_dict(model.state_dict())
    return twin


def fuse(model: nn.Module, config: Config, info: DatasetInfo) -> nn.Module:
    return graph.fuse(_twin(model, config, info), config.fuse.mode)


def prepare(fused: nn.Module, config: Config) -> nn.Module:
    return graph.prepare(fused, config.backend)


def prepare_ptq(model: nn.Module, config: Config, info: DatasetInfo) -> nn.Module:
    return graph.prepare_ptq(_twin(model, config, info), config.backend, config.ptq.observer)


def prepare_simulation(model: nn.Module, config: Config, info: DatasetInfo) -> nn.Module:
    return graph.prepare_simulation(_twin(model, config, info), config.backend, config.ptq.observer)


def takes_ranges(config: Config) -> bool:
    """Without fake-quantize there is nothing that has a range, and a histogram cannot be told one."""
    return config.backend.fake_quantize and config.backend.observer != "histogram"


def convert(prepared: nn.Module, config: Config) -> nn.Module:
    return graph.convert(prepared, config.backend)


def rebuild(form: Form, config: Config, info: DatasetInfo) -> nn.Module:
    backend = config.backend if form in ("qat", "int8", "ptq_int8") else None
    fuse_mode = config.fuse.mode if form in ("fused", "qat") else "train"
    return graph.rebuild(form, twins.build(config.model, info), backend, fuse_mode)


def set_mode(model: nn.Module, training: bool) -> None:
    model.train(training)


def smoothable(prepared: nn.Module) -> dict[str, list[str]]:
    return {}  # torch's modules do not tell who takes their outputs, and the twins have no LayerNorm


def freeze(model: nn.Module, batch_norm: bool, ranges: bool) -> None:
    if batch_norm:
        freeze_batch_norm(model)
    if ranges:
        freeze_observers(model)
