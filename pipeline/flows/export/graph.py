"""The forms of a captured network, and the verbs that lead from one to the next.

`fused` is the captured graph. For training, the BatchNorm behind a convolution is taken out, so that a quantizer sees
the graph that will run, torchao inserts fake-quantize modules, and layer and BatchNorm come back as one module
(layers.py). For post-training quantization the BatchNorm is folded for good. Converted, both are the same graph.
"""

from __future__ import annotations

from collections.abc import Container
from typing import Any

import torch
from torch import Tensor, fx, nn
from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e, prepare_qat_pt2e
from torchao.quantization.pt2e.quantizer import Quantizer

from pipeline.flows.export.capture import attribute, plain
from pipeline.flows.export.fake_quantize import FakeQuantize, settle
from pipeline.flows.export.layers import WeightedLayer
from pipeline.flows.export.quantizers import WEIGHTED, has_parameters, layer_name, module_path
from pipeline.flows.simulation import extremes, observe, range_of

aten = torch.ops.aten
decomposed = torch.ops.quantized_decomposed
_PER_TENSOR = (decomposed.quantize_per_tensor.default, decomposed.dequantize_per_tensor.default)
_Norms = dict[fx.Node, Any]


def fold(module: fx.GraphModule) -> fx.GraphModule:
    """Fold every BatchNorm behind a convolution into its weight and bias, in place."""
    compute_weights(module)
    for node, norm in _take_out_norms(module).items():
        weight, bias = _arguments(module, node)
        factor = norm.weight / torch.sqrt(norm.running_var + norm.eps)
        mean = norm.running_mean if bias is None else norm.running_mean - bias
        owner = str(node.args[1].target).rpartition(".")[0]  # type: ignore[union-attr]
        holder = nn.Module()
        holder.weight = nn.Parameter((weight * factor.view(-1, 1, 1, 1)).detach())
        holder.bias = nn.Parameter((norm.bias - mean * factor).detach())
        module.set_submodule(owner, holder)
        with module.graph.inserting_before(node):
            bias_node = module.graph.get_attr(f"{owner}.bias")
        rest = node.args[3:] if len(node.args) > 3 else ()
        node.args = (node.args[0], node.args[1], bias_node, *rest)
    return plain(module)


def compute_weights(module: fx.GraphModule) -> list[str]:
    """Compute once, in place, weights and biases that the forward makes of what no image changes; the layers' names.

    Weight normalization, weight standardization and masks of pruning do so. What comes out is quantized, and trained
    where something that it is made of is.
    """
    # In the graph's order, so that what is changed in place has been changed where it is used.
    values: dict[fx.Node, Any] = {}
    trained: dict[fx.Node, bool] = {}
    made: dict[fx.Node, fx.Node] = {}
    for node in list(module.graph.nodes):
        if node.target in WEIGHTED:
            for role, source in zip(("weight", "bias"), node.args[1:3], strict=False):
                if source in values and source.op != "get_attr":
                    parameter = nn.Parameter(values[source].clone(), requires_grad=trained[source])
                    made[_given(module, node, role, source, parameter)] = node
        elif node.op == "call_function" and _is_fixed(node, values):
            for source in node.all_input_nodes:
                if source not in values:
                    found = attribute(module, str(source.target))
                    values[source], trained[source] = found.detach().clone(), found.requires_grad
            arguments, keywords = fx.map_arg((node.args, node.kwargs), values.__getitem__)
            with torch.no_grad():
                values[node] = node.target(*arguments, **keywords)
            trained[node] = any(trained[source] for source in node.all_input_nodes)
    if not made:
        return []
    _erase_unneeded(module.graph, {node for node in values if node.op == "call_function"})
    for node, layer in made.items():
        owner, role = module_path(layer), str(node.target).rpartition(".")[2]
        if owner and owner in dict(module.named_modules()) and not _others(_used(module), owner, layer):
            setattr(module.get_submodule(owner), role, attribute(module, str(node.target)))
            node.target = f"{owner}.{role}"
    module.recompile()
    return list(dict.fromkeys(layer_name(layer) for layer in made.values()))


def _is_fixed(node: fx.Node, values: Container[fx.Node]) -> bool:
    """Whether a node computes the same for every image, `values` being what is computed so before it."""
    drawn = torch.Tag.nondeterministic_seeded in getattr(node.target, "tags", ())
    return not drawn and all(source.op == "get_attr" or source in values for source in node.all_input_nodes)


def _given(module: fx.GraphModule, node: fx.Node, role: str, source: fx.Node, value: nn.Parameter) -> fx.Node:
    """A parameter in place of what a layer computed: `role` of a module that is made for it."""
    place = f"{node.name}_computed"
    while hasattr(module, place):  # the network's own, or that of the layer's other parameter
        place += "_"
    module.add_submodule(place, nn.Module())
    setattr(module.get_submodule(place), role, value)
    with module.graph.inserting_before(node):
        made = module.graph.get_attr(f"{place}.{role}")
    # As of a layer's own weight: quantizers find a layer's parts by it.
    made.meta = {**node.meta, "val": source.meta["val"]}
    node.replace_input_with(source, made)
    return made


def _erase_unneeded(graph: fx.Graph, computed: set[fx.Node]) -> None:
    """Erase what is `computed` for nothing any more, also what is changed in place, which fx keeps."""
    needed: set[fx.Node] = set()
    open_ends = [node for node in computed if any(user not in computed for user in node.users)]
    while open_ends:
        node = open_ends.pop()
        if node not in needed:
            needed.add(node)
            open_ends += [one for one in (*node.all_input_nodes, *node.users) if one in computed]
    for node in reversed(list(graph.nodes)):
        if node in computed and node not in needed:
            graph.erase_node(node)
    graph.eliminate_dead_code()


def _used(module: fx.GraphModule) -> list[str]:
    """The parameters, buffers and modules that the graph uses, as often as it does."""
    return [str(node.target) for node in module.graph.nodes if node.op in ("get_attr", "call_module")]


def _others(used: list[str], owner: str, layer: fx.Node) -> list[str]:
    """What is used of the module `owner` besides the weight and the bias of a layer."""
    own = [source.target for source in layer.args[1:3] if isinstance(source, fx.Node)]
    return [name for name in used if f"{name}.".startswith(f"{owner}.") and name not in own]


def _take_out_norms(module: fx.GraphModule) -> _Norms:
    """Take the BatchNorm behind each convolution, where both are used once, out of the graph."""
    used = _used(module)
    found: _Norms = {}
    for node in list(module.graph.nodes):
        if node.op != "call_module" or used.count(str(node.target)) > 1:
            continue
        norm, convolution = module.get_submodule(str(node.target)), node.args[0]
        if (
            type(norm) is nn.BatchNorm2d
            and norm.affine
            and norm.running_var is not None
            and convolution.target in WEIGHTED
            and len(convolution.users) == 1
            and _own_weight(convolution, used)
        ):
            node.replace_all_uses_with(convolution)
            module.graph.erase_node(node)
            found[convolution] = norm
    return found


def _own_weight(node: fx.Node, used: list[str]) -> bool:
    """Whether a layer's weight is a parameter that no other layer uses, in a module that holds nothing else."""
    weight = node.args[1]
    return (
        isinstance(weight, fx.Node)
        and weight.op == "get_attr"
        and len(weight.users) == 1
        and used.count(str(weight.target)) == 1
        and str(weight.target).endswith(".weight")
        and not _others(used, str(weight.target).removesuffix(".weight"), node)
    )


def _arguments(module: fx.GraphModule, node: fx.Node) -> tuple[Tensor, Tensor | None]:
    """Weight and bias of a layer."""
    arguments: Any = node.args
    weight, bias = arguments[1], arguments[2] if len(arguments) > 2 else None
    return attribute(module, weight.target), None if bias is None else attribute(module, bias.target)


def prepare(module: fx.GraphModule, quantizer: Quantizer, training: bool) -> fx.GraphModule:
    """Insert fake-quantize modules into a captured graph, in place; without `training` its BatchNorm is folded first.

    The annotation is made on the graph that will run, so it is the same either way.
    """
    norms: _Norms = {}
    if training:
        compute_weights(module)
        norms = _take_out_norms(module)
    else:
        module = fold(module)
    weights = {node: _arguments(module, node) for node in module.graph.nodes if has_parameters(node)}
    names = {node: layer_name(node) for node in weights}
    used = _used(module)
    own = {node for node in weights if _own_weight(node, used)}
    prepared = (prepare_qat_pt2e if training else prepare_pt2e)(module, quantizer)
    for node in [node for node in prepared.graph.nodes if node in weights]:
        weight_source = node.args[1]
        fake_quantize = _fake_quantize_of(prepared, weight_source)
        if fake_quantize is None or node not in own:
            _bring_back(prepared, node, norms.get(node), names[node])
            continue
        weight, bias = weights[node]
        rest = tuple(node.args[3:])
        layer = WeightedLayer(
            node.target,  # type: ignore[arg-type]
            rest,
            weight,
            bias,
            norms.get(node),
            fake_quantize,
            _fake_quantize_of(prepared, node.args[0]),
        )
        prepared.set_submodule(names[node], layer)
        node.op, node.target, node.args, node.kwargs = "call_module", names[node], node.args[:1], {}
    prepared.graph.eliminate_dead_code()
    return plain(prepared)


def _fake_quantize_of(module: fx.GraphModule, node: Any) -> FakeQuantize | None:
    """The fake-quantize module that a node calls."""
    if not isinstance(node, fx.Node) or node.op != "call_module":
        return None
    found = module.get_submodule(str(node.target))
    return found if isinstance(found, FakeQuantize) else None


def _bring_back(module: fx.GraphModule, node: fx.Node, norm: nn.BatchNorm2d | None, name: str) -> None:
    """Put the BatchNorm of a layer that stays float behind it again."""
    if norm is None:
        return
    path = f"{name}_norm"
    module.add_submodule(path, norm)
    with module.graph.inserting_after(node):
        call = module.graph.call_module(path)
    node.replace_all_uses_with(call)
    call.args = (node,)
    call.meta = dict(node.meta)


def layers(module: nn.Module) -> dict[str, nn.Module]:
    """The layers whose weights are quantized, by name, in the order in which they compute."""
    return {name: layer for name, layer in module.named_modules() if isinstance(layer, WeightedLayer)}


def smoothable(prepared: nn.Module) -> dict[str, list[str]]:
    """The LayerNorms, by their path, whose outputs go to quantized linear layers alone, and the names of these."""
    assert isinstance(prepared, fx.GraphModule)
    used = [node.target for node in prepared.graph.nodes if node.op == "get_attr"]
    found = {}
    for node in prepared.graph.nodes:
        weight = node.args[2] if node.target is aten.layer_norm.default and len(node.args) > 2 else None
        if weight is None or used.count(weight.target) > 1 or attribute(prepared, weight.target).dim() != 1:
            continue
        takers: list[fx.Node] = []
        for user in node.users:
            takers += user.users if _fake_quantize_of(prepared, user) is not None else [user]
        names = [str(taker.target) for taker in takers if _is_linear(prepared, taker)]
        if names and len(names) == len(takers):
            found[weight.target.rpartition(".")[0]] = names
    return found


def _is_linear(module: fx.GraphModule, node: fx.Node) -> bool:
    layer = module.get_submodule(str(node.target)) if node.op == "call_module" else None
    return isinstance(layer, WeightedLayer) and layer.weight.dim() == 2


def convert(prepared: fx.GraphModule) -> fx.GraphModule:
    """The graph in pairs of quantize and dequantize, its weights in int8, in place, on the CPU.

    Scales and zero points of activations are numbers in the graph; they are in its `state_dict` too, and are written
    into the graph when one is loaded. Float weights are not there any more.
    """
    prepared.cpu().eval()
    settle(prepared)
    with torch.no_grad():
        for node in list(prepared.graph.nodes):
            if node.op == "call_module" and isinstance(layer := prepared.get_submodule(node.target), WeightedLayer):
                _write_int8(prepared, node, layer)
    converted = plain(convert_pt2e(plain(prepared))).eval()
    converted.requires_grad_(False)
    _keep_ranges(converted)
    return converted


def _write_int8(module: fx.GraphModule, node: fx.Node, layer: WeightedLayer) -> None:
    """Let a layer's operator take its weights from int8, with the BatchNorm folded."""
    weight, factor, bias = layer.folded()
    if factor is not None:
        weight = weight * factor.view(-1, *(1,) * (weight.dim() - 1))
    fake_quantize = layer.weight_fake_quant
    if not fake_quantize.has_seen:  # in a graph that is rebuilt, whose numbers come with its state_dict
        observe(fake_quantize, *extremes(weight, fake_quantize.is_per_channel))
    lowest, highest = fake_quantize.quant_min, fake_quantize.quant_max
    scale, zero_point = fake_quantize.scale.clone(), fake_quantize.zero_point.clone()
    levels = weight * (1 / scale).view(-1, *(1,) * (weight.dim() - 1))
    int8 = nn.Module()
    int8.register_buffer("weight", levels.round().clamp(lowest, highest).to(torch.int8))
    name = str(node.target)
    if fake_quantize.is_per_channel:
        int8.register_buffer("scale", scale)
        int8.register_buffer("zero_point", zero_point.to(torch.int64))
    if bias is not None:
        int8.register_buffer("bias", bias.detach().clone())
    module.set_submodule(name, int8)
    graph = module.graph
    with graph.inserting_before(node):
        stored = graph.get_attr(f"{name}.weight")
        if fake_quantize.is_per_channel:
            numbers: list[Any] = [graph.get_attr(f"{name}.scale"), graph.get_attr(f"{name}.zero_point"), 0]
            operator = decomposed.dequantize_per_channel.default
        else:
            numbers = [float(scale), int(zero_point)]
            operator = decomposed.dequantize_per_tensor.default
        weight_node = graph.call_function(operator, (stored, *numbers, lowest, highest, torch.int8))
        bias_node = None if bias is None else graph.get_attr(f"{name}.bias")
    node.op, node.target = "call_function", layer.operator  # type: ignore[assignment]
    node.args = (node.args[0], weight_node, bias_node, *layer.rest)


def _keep_ranges(converted: fx.GraphModule) -> None:
    """Hold in buffers the scales and zero points that stand in the graph as numbers."""
    pairs = [node.args[1:3] for node in _per_tensor(converted)]
    converted.register_buffer("scales", torch.tensor([scale for scale, _ in pairs], dtype=torch.float32))
    converted.register_buffer("zero_points", torch.tensor([point for _, point in pairs], dtype=torch.int64))
    converted.register_load_state_dict_post_hook(_write_ranges)


def _write_ranges(converted: nn.Module, incompatible_keys: Any) -> None:
    assert isinstance(converted, fx.GraphModule)
    numbers = zip(converted.scales.tolist(), converted.zero_points.tolist(), strict=True)  # type: ignore[union-attr, operator]
    for node, (scale, zero_point) in zip(_per_tensor(converted), numbers, strict=True):
        node.args = (node.args[0], scale, zero_point, *node.args[3:])
    converted.recompile()


def _per_tensor(converted: fx.GraphModule) -> list[fx.Node]:
    return [node for node in converted.graph.nodes if node.target in _PER_TENSOR]


def take_ranges(prepared: nn.Module, calibrated: nn.Module) -> None:
    """Set the ranges of a graph prepared for training to those of a calibrated one, which has the same modules."""
    others = dict(calibrated.named_modules())
    for name, module in prepared.named_modules():
        other = others.get(name)
        if isinstance(module, FakeQuantize) and isinstance(other, FakeQuantize) and other.has_seen:
            observe(module, *range_of(module, *other.calculate_qparams()))
