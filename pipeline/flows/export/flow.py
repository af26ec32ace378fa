"""torch.export and torchao's PT2E as a flow: the functions that `pipeline.flows.contract.Flow` asks for."""

from __future__ import annotations

import copy
import dataclasses
import json
from contextlib import AbstractContextManager

import torch
from torch import Tensor, fx, nn

from pipeline import models
from pipeline.datasets.spec import DatasetInfo
from pipeline.flows import Form
from pipeline.flows.contract import Method
from pipeline.flows.export import graph, quantizers
from pipeline.flows.export.capture import capture, check_output
from pipeline.flows.export.fake_quantize import fake_quantize_off, fake_quantizes
from pipeline.flows.export.fake_quantize import observers_off as _observers_off
from pipeline.flows.export.graph import layers, smoothable, take_ranges
from pipeline.flows.export.layers import WeightedLayer
from pipeline.flows.names import check_names
from pipeline.flows.processor import int8_products
from pipeline.host import terminal
from pipeline.host.errors import UserError, first_line, suggestion
from pipeline.host.faults import fault
from pipeline.host.world import World
from pipeline.settings.config import BackendConfig, Config, ModelConfig

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

# How far a graph's outputs may be from the float network's, relative to the largest of these.
_NEARLY = 1e-4
# The runtimes that a backend may be for.
_ENGINES = ("openvino", "onnxruntime", "inductor", "executorch")


def check(config: Config, info: DatasetInfo) -> None:
    backend = config.backend
    for key, value, allowed in (
        ("qconfig", backend.qconfig, quantizers.NAMES),
        ("engine", backend.engine, _ENGINES),
    ):
        if value not in allowed:
            raise UserError(f"backend.{key}={value}: {suggestion(value, allowed)} with backend.flow=export")
    if (lacking := quantizers.lacks(backend)) is not None:
        raise UserError(lacking)
    if backend.float_modules:
        network = models.build(config.model, info)
        blocks = [name for name, _ in network.named_modules() if name]
        check_names("backend.float_modules", backend.float_modules, blocks, f"{config.model.name} has no module")
    captured = _captured(config.model, info)
    with torch.random.fork_rng(devices=[]):
        check_output(models.build(config.model, info).train(), _example(info))
    bare = dataclasses.replace(backend, skip_layers=[], float_modules=[])
    quantizable = _prepared_layers(captured, bare)
    check_names(
        "backend.skip_layers", backend.skip_layers, quantizable, f"{config.model.name} has no quantizable layer"
    )
    if not _prepared_layers(captured, backend):
        raise UserError(
            f"backend.qconfig={backend.qconfig}: nothing of {config.model.name} would be quantized; allowed: a network "
            "with two-dimensional convolutions or linear layers, some of them not in backend.skip_layers, float_modules"
        )


def _prepared_layers(captured: fx.GraphModule, backend: BackendConfig) -> list[str]:
    return list(layers(_prepare(copy.deepcopy(captured), backend, "moving_average", training=True)))


def modules_of(config: Config) -> list[str]:
    return [__name__]


def describe(config: Config, method: Method) -> dict[str, str]:
    training = method == "qat" and config.backend.fake_quantize
    return quantizers.in_words(quantizers.numbers(config.backend, _observer(config, training)), training)


def warning(config: Config) -> str | None:
    return None


def unfaithful(config: Config) -> str | None:
    return None


def runtime(config: Config) -> str | None:
    return config.backend.engine


def _observer(config: Config, training: bool) -> str:
    """The observer of activations where the backend names none, or PTQ another one."""
    return "moving_average" if training else "histogram"


# Captured networks by what they are built from: capturing takes seconds, and every form begins with it.
_captures: dict[str, fx.GraphModule] = {}


def _captured(model: ModelConfig, info: DatasetInfo) -> fx.GraphModule:
    """The graph of a fresh network, to be copied by whoever changes it."""
    key = json.dumps([dataclasses.asdict(model), dataclasses.asdict(info)], sort_keys=True)
    if key not in _captures:
        with torch.random.fork_rng(devices=[]):
            _captures[key] = capture(models.build(model, info), _example(info))
    return _captures[key]


def _example(info: DatasetInfo, count: int = 2) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(count, info.channels, info.image_size, info.image_size, generator=generator)


def _graph_of(model: nn.Module, config: Config, info: DatasetInfo) -> fx.GraphModule:
    """The captured graph with a float network's parameters."""
    captured = copy.deepcopy(_captured(config.model, info))
    state = model.state_dict()
    # Beside the network's own, a graph holds constants that its forward makes.
    captured.load_state_dict({name: state.get(name, value) for name, value in captured.state_dict().items()})
    return captured


def fuse(model: nn.Module, config: Config, info: DatasetInfo) -> nn.Module:
    """The captured graph; its outputs are held against the network's, and the difference is told.

    Raises:
        UserError: where they differ by more than rounding.
    """
    captured = _graph_of(model, config, info)
    example = _example(info, 3)  # another number of images than the graph was captured with
    computing = copy.deepcopy(captured)  # as it will be prepared
    computed = graph.compute_weights(computing)
    with torch.no_grad():
        expected, found = model.eval()(example), computing.eval()(example)
    difference = float((found - expected).abs().max())
    if torch.equal(found, expected):
        terminal.say("  the captured graph's outputs equal the float network's bit for bit")
    elif difference <= _NEARLY * float(expected.abs().max()):
        terminal.say(f"  the captured graph's outputs differ from the float network's by {difference:.2g} at most")
    else:
        raise UserError(
            f"model.name={config.model.name}: its captured graph computes something else (outputs differ by "
            f"{difference:.2g}): its forward does what a graph cannot hold, such as drawing random numbers"
        )
    if computed:
        more = f" and {len(computed) - 3} more" if len(computed) > 3 else ""
        terminal.say(
            f"  layers that compute their weights or biases in each forward: {', '.join(computed[:3])}{more}; "
            "QAT trains the computed values instead"
        )
    return _fused(captured, config)


def _fused(captured: fx.GraphModule, config: Config) -> fx.GraphModule:
    return graph.fold(captured) if config.fuse.mode == "eval" else captured


def _prepare(captured: fx.GraphModule, backend: BackendConfig, observer: str, training: bool) -> fx.GraphModule:
    """A captured graph with fake-quantize modules where the backend's quantizer puts them.

    Raises:
        UserError: where the quantizer cannot take the graph.
    """
    found = quantizers.numbers(backend, observer)
    try:
        return graph.prepare(captured, quantizers.make_quantizer(backend, found, training), training)
    except Exception as error:  # whatever a quantizer raises for a graph that it does not expect
        if fault(error):
            raise
        raise UserError(
            f"backend.qconfig={backend.qconfig}: its quantizer cannot take this network ({type(error).__name__}: "
            f"{first_line(error)}); allowed: "
            f"{', '.join(name for name in quantizers.NAMES if name != backend.qconfig)}, or the block that it stumbles "
            "over in backend.float_modules"
        ) from error


def prepare(fused: nn.Module, config: Config) -> nn.Module:
    assert isinstance(fused, fx.GraphModule)
    simulated = config.backend.fake_quantize
    prepared = _prepare(fused, config.backend, _observer(config, simulated), training=True)
    if not simulated:
        switch_all(prepared, False)
    return prepared.train()


def prepare_ptq(model: nn.Module, config: Config, info: DatasetInfo) -> nn.Module:
    backend = config.backend
    if config.ptq.observer is not None:
        backend = dataclasses.replace(backend, observer=config.ptq.observer)
    return _prepare(_graph_of(model, config, info), backend, "histogram", training=False).eval()


# Its modules simulate int8 as they are.
prepare_simulation = prepare_ptq


def takes_ranges(config: Config) -> bool:
    """Without fake-quantize there is nothing that has a range, and a histogram cannot be told one."""
    return config.backend.fake_quantize and config.backend.observer != "histogram"


def convert(prepared: nn.Module, config: Config) -> nn.Module:
    assert isinstance(prepared, fx.GraphModule)
    return graph.convert(prepared)


def rebuild(form: Form, config: Config, info: DatasetInfo) -> nn.Module:
    captured = copy.deepcopy(_captured(config.model, info))
    if form == "fused":
        return _fused(captured, config)
    if form == "qat":
        return prepare(_fused(captured, config), config)
    # Converted, both int8 forms have the same graph, whichever way and with whichever observers it was reached.
    return graph.convert(_prepare(captured, config.backend, "min_max", training=False))


def set_mode(model: nn.Module, training: bool) -> None:
    model.train(training)


def observers_off(model: nn.Module) -> AbstractContextManager[None]:
    return _observers_off(model)


def observe_over_all(model: nn.Module, world: World) -> None:
    weights = {id(layer.weight_fake_quant) for layer in layers(model).values()}
    for module in fake_quantizes(model):
        if id(module) not in weights:
            module.world = world


def freeze(model: nn.Module, batch_norm: bool, ranges: bool) -> None:
    if batch_norm:
        for module in model.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.eval()
    if ranges:
        for fake_quantize in fake_quantizes(model):
            fake_quantize.disable_observer()


def quantized_output(layer: nn.Module, inputs: tuple[Tensor, ...]) -> Tensor:
    assert isinstance(layer, WeightedLayer)
    return layer.quantized(*inputs)


def quantized_weight(layer: nn.Module) -> Tensor:
    assert isinstance(layer, WeightedLayer)
    quantized: Tensor = layer.weight_fake_quant(layer.weight)
    return quantized


def switch(layer: nn.Module, weight: bool, activation: bool) -> None:
    assert isinstance(layer, WeightedLayer)
    layer.weight_fake_quant.enable_fake_quant(weight)
    if layer.input_fake_quantize is not None:
        layer.input_fake_quantize.enable_fake_quant(activation)


def switch_all(model: nn.Module, enabled: bool) -> None:
    for module in fake_quantizes(model):
        module.enable_fake_quant(enabled)
