"""Where a backend quantizes, and with which numbers: a quantizer for each runtime, since no placement serves all.

`x86_inductor` is torchao's: it quantizes what goes into convolutions, linear layers and the additions behind them,
which OpenVINO fuses best. `onnxruntime` is ours: onnxruntime computes a convolution in int8 where there is
a pair of quantize and dequantize behind it too. `xnnpack` is ExecuTorch's.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import operator
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import fx
from torchao.quantization.pt2e.quantizer import (
    QuantizationAnnotation,
    QuantizationSpec,
    Quantizer,
    SharedQuantizationSpec,
)
from torchao.quantization.pt2e.quantizer.quantizer import Q_ANNOTATION_KEY
from torchao.quantization.pt2e.quantizer.utils import QuantizationConfig
from torchao.quantization.pt2e.quantizer.x86_inductor_quantizer import (
    X86InductorQuantizer,
    _X86InductorQuantizationAnnotation,
)

from pipeline.flows.export.fake_quantize import OBSERVERS, FakeQuantize, weight_observer
from pipeline.flows.processor import has_vnni
from pipeline.host import terminal
from pipeline.host.files import how_to_install
from pipeline.settings.config import BackendConfig

aten = torch.ops.aten
_XNNPACK = "xnnpack"
# The operators whose weights are quantized.
WEIGHTED = (aten.conv2d.default, aten.linear.default)
# Fused into the layer before them by onnxruntime.
_RECTIFIERS = (aten.relu.default, aten.relu_.default, aten.hardtanh.default, aten.hardtanh_.default)
_ADDITIONS = (aten.add.Tensor, aten.add_.Tensor)
# They choose among numbers, or move them: their levels are those of what goes in.
_MOVING = (
    aten.max_pool2d.default,
    aten.adaptive_avg_pool2d.default,
    aten.avg_pool2d.default,
    aten.flatten.using_ints,
    aten.view.default,
    aten.reshape.default,
    aten.permute.default,
)
_MULTIPLICATIONS = (aten.mul.Tensor, aten.mul_.Tensor, operator.mul)
_SILUS = (aten.silu.default, aten.silu_.default)
_POOLS = (aten.adaptive_avg_pool2d.default, aten.mean.dim)


@dataclasses.dataclass(frozen=True)
class Numbers:
    """What a backend's settings come to.

    Attributes:
        activation, weight: lowest and highest level.
        per_channel: of the weights.
        symmetric: of the activations: their zero point is in the middle.
        observer: of the activations.
    """

    activation: tuple[int, int]
    weight: tuple[int, int]
    per_channel: bool
    symmetric: bool
    observer: str


def numbers(backend: BackendConfig, observer: str) -> Numbers:
    """The levels of a backend on this processor.

    Without VNNI, kernels add two products of 8 bits each in 16 and saturate. One bit less of the weights avoids it
    (onnxruntime's `reduce_range`, NNCF's overflow fix), as 7 bits of the activations do; but a file holds weights
    exactly, while QuantizeLinear has no levels from 0 to 127.
    """
    if backend.qconfig == _XNNPACK:
        # Signed, as its kernels are, which saturate on no processor.
        activation, reduced = (-128, 127), False
    else:
        activation = (0, 127 if backend.activation_bits == 7 else 255)
        reduced = backend.activation_bits != 7 and not has_vnni()
    largest = 63 if reduced else 127
    return Numbers(
        activation=activation,
        weight=(-largest, largest),
        per_channel=backend.per_channel is not False,
        symmetric=bool(backend.symmetric),
        observer=backend.observer or observer,
    )


def in_words(found: Numbers, training: bool) -> dict[str, str]:
    """What the numbers mean: dtype, range, granularity and observer of activations and weights."""
    schemes = {
        "activation": f"per_tensor_{'symmetric' if found.symmetric else 'affine'}",
        "weight": f"per_{'channel' if found.per_channel else 'tensor'}_symmetric",
    }
    observers = {
        "activation": OBSERVERS[found.observer].__name__,
        "weight": weight_observer(found.per_channel, training).__name__,
    }
    return {
        role: f"{kind} [{low}, {high}] {schemes[role]} {observers[role]}"
        for role, kind, (low, high) in (
            ("activation", "int8" if found.activation[0] < 0 else "uint8", found.activation),
            ("weight", "int8", found.weight),
        )
    }


def _specs(found: Numbers, training: bool) -> tuple[QuantizationSpec, QuantizationSpec]:
    """For activations and for weights."""
    activation = QuantizationSpec(
        dtype=torch.int8 if found.activation[0] < 0 else torch.uint8,
        quant_min=found.activation[0],
        quant_max=found.activation[1],
        qscheme=torch.per_tensor_symmetric if found.symmetric else torch.per_tensor_affine,
        observer_or_fake_quant_ctr=FakeQuantize.with_args(observer=OBSERVERS[found.observer]),
    )
    weight = QuantizationSpec(
        dtype=torch.int8,
        quant_min=found.weight[0],
        quant_max=found.weight[1],
        qscheme=torch.per_channel_symmetric if found.per_channel else torch.per_tensor_symmetric,
        ch_axis=0,
        observer_or_fake_quant_ctr=FakeQuantize.with_args(observer=weight_observer(found.per_channel, training)),
    )
    return activation, weight


def module_path(node: fx.Node) -> str:
    """The module of the float network that a node was captured in."""
    stack = node.meta.get("nn_module_stack") or {}
    path = str(next(reversed(stack.values()))[0]) if stack else ""
    return path.removeprefix("L['self'].").removeprefix("L__self__.")


class _X86(X86InductorQuantizer):  # type: ignore[misc]
    """torchao's, with some nodes left as they are."""

    def __init__(self, found: Numbers, training: bool, stays_float: Callable[[fx.Node], bool]) -> None:
        super().__init__()
        activation, weight = _specs(found, training)
        # is_qat looks for BatchNorm behind convolutions, which is folded, or taken out, before.
        self.set_global(QuantizationConfig(activation, activation, weight, None, is_qat=False))
        self._stays_float = stays_float

    def annotate(self, model: fx.GraphModule) -> fx.GraphModule:
        for node in model.graph.nodes:
            if node.op == "call_function" and self._stays_float(node):
                node.meta[Q_ANNOTATION_KEY] = _X86InductorQuantizationAnnotation(_annotated=True)
        with warnings.catch_warnings():
            # A pooling that is left float is what was asked for, or cannot be helped.
            warnings.filterwarnings("ignore", message="The input of maxpool2d is not quantized")
            return super().annotate(model)

    def _get_input_idx_for_binary_node(self, gemm: fx.Node, binary: fx.Node) -> tuple[int | None, int | None]:
        """Which operands an addition behind a layer has; none to fuse where one is a number, which torchao asserts."""
        if not all(isinstance(one, fx.Node) for one in binary.args):
            return None, None
        return super()._get_input_idx_for_binary_node(gemm, binary)  # type: ignore[no-any-return]


class _OnnxRuntime(Quantizer):  # type: ignore[misc]
    """Convolutions and linear layers with what goes in and what comes out, additions of such, and what moves numbers.

    A squeeze-and-excitation gate is quantized whole: its pooling, its layers and its multiplication. So is a SiLU, as
    the sigmoid and the multiplication that it is, for which onnxruntime has int8 kernels. A hard-swish is computed in
    float between dequantize and quantize: cut up into quantized pieces, it costs more than it saves.
    """

    def __init__(self, found: Numbers, training: bool, stays_float: Callable[[fx.Node], bool]) -> None:
        super().__init__()
        self._activation, self._weight = _specs(found, training)
        self._stays_float = stays_float

    def transform_for_annotation(self, model: fx.GraphModule) -> fx.GraphModule:
        for node in [node for node in model.graph.nodes if node.target in _SILUS and not self._stays_float(node)]:
            (values,) = node.args
            with model.graph.inserting_before(node):
                sigmoid = model.graph.call_function(aten.sigmoid.default, (values,))
                product = model.graph.call_function(aten.mul.Tensor, (values, sigmoid))
            for made in (sigmoid, product):
                made.meta = dict(node.meta)
            node.replace_all_uses_with(product)
            model.graph.erase_node(node)
        return model

    def annotate(self, model: fx.GraphModule) -> fx.GraphModule:
        pieces = _gates(model.graph) | _silus(model.graph)
        quantized: set[fx.Node] = set()
        for node in model.graph.nodes:
            if node.op != "call_function" or self._stays_float(node):
                continue
            if node.target in WEIGHTED:
                inputs = {node.args[0]: self._activation, node.args[1]: self._weight}
            elif node.target in _ADDITIONS and all(one in quantized for one in node.args):
                inputs = dict.fromkeys(node.args, self._activation)
            elif node in pieces:
                # Each with levels of its own: means of many pixels are much smaller than the pixels.
                inputs = dict.fromkeys(node.all_input_nodes, self._activation)
            elif node.target in _MOVING and node.args[0] in quantized:
                self._note(node, {node.args[0]: self._activation}, SharedQuantizationSpec((node.args[0], node)))
                quantized.add(node)
                continue
            else:
                continue
            last = _with_rectifier(node)
            # Logits stay as exact as a float output makes them.
            output = None if any(user.op == "output" for user in last.users) else self._activation
            if last is node:
                self._note(node, inputs, output)
            else:
                self._note(node, inputs, None)
                self._note(last, {}, output)
            if output is not None:
                quantized.add(last)
        return model

    def _note(self, node: fx.Node, inputs: dict[Any, Any], output: Any) -> None:
        node.meta[Q_ANNOTATION_KEY] = QuantizationAnnotation(
            input_qspec_map=inputs, output_qspec=output, _annotated=True
        )

    def validate(self, model: fx.GraphModule) -> None: ...


def _with_rectifier(node: fx.Node) -> fx.Node:
    """The rectifier that alone uses what a node computes, or the node."""
    (user, *others) = node.users
    return user if not others and user.target in _RECTIFIERS else node


def _gates(graph: fx.Graph) -> set[fx.Node]:
    """Of squeeze-and-excitation: the pooling, and the multiplication by its factors, (N, C, 1, 1)."""
    found: set[fx.Node] = set()
    for node in graph.nodes:
        if node.target in _MULTIPLICATIONS and all(isinstance(factor, fx.Node) for factor in node.args):
            for factor in node.args:
                pools = _pools_behind(factor) if _is_one_pixel(factor) else set()
                found |= {node, *pools} if pools else set()
    return found


def _silus(graph: fx.Graph) -> set[fx.Node]:
    """Sigmoids, and the multiplications of them by what they are of."""
    return {
        piece
        for node in graph.nodes
        if node.target in _MULTIPLICATIONS
        for sigmoid in node.args
        if isinstance(sigmoid, fx.Node) and sigmoid.target is aten.sigmoid.default and sigmoid.args[0] in node.args
        for piece in (sigmoid, node)
    }


def _is_one_pixel(node: fx.Node) -> bool:
    shape = getattr(node.meta.get("val"), "shape", ())
    return len(shape) == 4 and tuple(shape[2:]) == (1, 1)


def _pools_behind(node: fx.Node) -> set[fx.Node]:
    """The poolings from which a tensor (N, C, 1, 1) is computed."""
    pools, seen, open_ends = set(), set(), [node]
    while open_ends:
        node = open_ends.pop()
        if node.op != "call_function" or node in seen or not _is_one_pixel(node):
            continue
        seen.add(node)
        if node.target in _POOLS:
            pools.add(node)
        else:
            open_ends += node.all_input_nodes
    return pools


def _xnnpack(found: Numbers, training: bool, stays_float: Callable[[fx.Node], bool]) -> Quantizer:
    """ExecuTorch's own: it knows what XNNPACK has int8 kernels for."""
    with terminal.quietly():
        from executorch.backends.xnnpack.quantizer.xnnpack_quantizer import XNNPACKQuantizer

    activation, weight = _specs(found, training)
    # Without is_qat, for the reason of _X86.
    quantizer = XNNPACKQuantizer().set_global(QuantizationConfig(activation, activation, weight, None, is_qat=False))
    quantizer.set_filter_function(lambda node: not stays_float(node))
    return quantizer


_QUANTIZERS: dict[str, Any] = {"x86_inductor": _X86, "onnxruntime": _OnnxRuntime, _XNNPACK: _xnnpack}
NAMES = tuple(_QUANTIZERS)


def lacks(backend: BackendConfig) -> str | None:
    """Why a backend's quantizer cannot be had as it is asked for, in words."""
    if backend.qconfig != _XNNPACK:
        return None
    if importlib.util.find_spec("executorch") is None:
        return f"backend={backend.name}: executorch is not installed here; {how_to_install('executorch')} brings it"
    if backend.activation_bits == 7:
        return f"backend.activation_bits=7: backend.qconfig={_XNNPACK} has activations of 8 bits; allowed: 8"
    return None


def make_quantizer(backend: BackendConfig, found: Numbers, training: bool) -> Quantizer:
    """The quantizer that a backend names, which leaves `skip_layers` and `float_modules` float."""
    skipped, blocks = set(backend.skip_layers), tuple(backend.float_modules)

    def stays_float(node: fx.Node) -> bool:
        if node.target in WEIGHTED and (layer_name(node) in skipped or not has_parameters(node)):
            return True
        path = module_path(node)
        return any(path == block or path.startswith(f"{block}.") for block in blocks)

    return _QUANTIZERS[backend.qconfig](found, training, stays_float)


def has_parameters(node: fx.Node) -> bool:
    """Whether a node is a layer with a weight, and where it has one a bias, that the image does not change."""
    return node.target in WEIGHTED and all(
        source is None or (isinstance(source, fx.Node) and source.op == "get_attr") for source in node.args[1:3]
    )


def layer_name(node: fx.Node) -> str:
    """The name of a layer: that of the module that owns its weight."""
    weight = node.args[1]
    if not isinstance(weight, fx.Node) or weight.op != "get_attr":
        return ""
    owner, _, name = str(weight.target).rpartition(".")
    return owner if name == "weight" and owner else str(weight.target)
