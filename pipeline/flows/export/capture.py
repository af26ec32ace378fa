"""A float network as a graph: torch.export's, with BatchNorm and dropout as the modules that they were.

torch.export writes the mode into the graph, training or evaluation, and the switch that torchao offers between them
replaces dropout's p and BatchNorm's eps and momentum by defaults (pytorch/ao#2980). So the graph is captured in
evaluation mode, and BatchNorm and dropout, which alone differ in training, are modules in it again: `train()` and
`eval()` work as on any network, and what the training of several processes replaces it finds by its class.
"""

from __future__ import annotations

import contextlib
import logging
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx, nn

from pipeline.host.errors import UserCodeError, UserError, first_line
from pipeline.host.faults import fault

aten = torch.ops.aten
_BATCH_NORMS = {2: nn.BatchNorm1d, 3: nn.BatchNorm1d, 4: nn.BatchNorm2d, 5: nn.BatchNorm3d}
_DROPOUTS: dict[Any, type[nn.Module]] = {
    aten.dropout.default: nn.Dropout,
    aten.dropout_.default: nn.Dropout,
    aten.feature_dropout.default: nn.Dropout2d,
    aten.feature_dropout_.default: nn.Dropout2d,
}
# Any number of images; torch.export insists on a bound.
_MOST_IMAGES = 65_536
_TORCH = str(Path(torch.__file__).parent)


def capture(model: nn.Module, example: Tensor) -> fx.GraphModule:
    """The graph of a float network for images like `example` (B, C, H, W), B > 1, of any number of images.

    Its parameters and buffers are those of `model`, under the same names; those that are not used are left out.

    Raises:
        UserError: where torch.export cannot take the network, naming the module and the line of its source.
    """
    check_output(model.eval(), example)
    batch = torch.export.Dim("batch", min=1, max=_MOST_IMAGES)
    try:
        with _quietly():
            exported = torch.export.export(model, (example,), dynamic_shapes=({0: batch},), strict=True)
            graph_module = exported.module(check_guards=False)
    except Exception as error:  # whatever torch.export makes of what it cannot take
        if fault(error):
            raise
        raise UserError(_in_words(error, model)) from error
    assert isinstance(graph_module, fx.GraphModule)
    graph = graph_module.graph
    for node in list(graph.nodes):
        if node.op == "call_function":
            if node.target is aten.batch_norm.default:
                _restore_batch_norm(node, graph_module, model)
            elif node.target is aten.conv2d.padding:
                _pad_by_numbers(node, node.args[1].meta["val"].shape[2:])
            elif node.target in _DROPOUTS:
                name = f"dropouts.{node.name}"
                graph_module.add_submodule(name, _DROPOUTS[node.target](node.args[1]))
                _become_call(node, name)
            elif node.target is aten.alias.default:  # a slice of everything; with a pair of its own, OpenVINO crashes
                node.replace_all_uses_with(node.args[0])
            elif node.target is aten._assert_tensor_metadata.default:  # a quantizer would take it for a part of a layer
                graph.erase_node(node)
    graph.eliminate_dead_code()
    _return_one(graph)
    return plain(graph_module).eval()


def plain(module: fx.GraphModule) -> fx.GraphModule:
    """The same graph, with what it uses alone, and with `train()` and `eval()`, which exported modules refuse."""
    again = fx.GraphModule(module, module.graph, class_name="Graph")
    again.meta.update(module.meta)
    return again


def _restore_batch_norm(node: fx.Node, module: fx.GraphModule, model: nn.Module) -> None:
    """Turn a call of batch_norm into a module with the parameters that it uses, where they are a module's own."""
    arguments: Any = node.args
    values, weight, bias, mean, variance, _, momentum, eps, _ = arguments
    owners = {
        argument.target.rpartition(".")[0]
        for argument in (weight, bias, mean, variance)
        if argument is not None and argument.op == "get_attr"
    }
    if len(owners) != 1 or mean is None:
        return  # functional, with tensors of its own: it goes on by its running statistics
    (path,) = owners
    owner: Any = model.get_submodule(path)
    features = getattr(owner, "num_features", None) or len(attribute(module, mean.target))
    kind: Any = _BATCH_NORMS[values.meta["val"].dim()]
    norm = kind(features, eps=eps, momentum=getattr(owner, "momentum", momentum), affine=weight is not None)
    for role, argument in (("weight", weight), ("bias", bias), ("running_mean", mean), ("running_var", variance)):
        if argument is not None:
            setattr(norm, role, attribute(module, argument.target))
    if isinstance(tracked := getattr(owner, "num_batches_tracked", None), Tensor):
        norm.num_batches_tracked = tracked
    module.set_submodule(path, norm)
    _become_call(node, path)


def _pad_by_numbers(node: fx.Node, kernel: Sequence[int]) -> None:
    """Write a convolution's padding, named `same` or `valid`, as numbers, which is what quantizers know."""
    arguments: Any = node.args
    defaults: tuple[Any, ...] = (None, [1, 1], "valid", [1, 1], 1)
    given: tuple[Any, ...] = (*arguments, *defaults[len(arguments) - 2 :])
    values, weight, bias, stride, padding, dilation, groups = given
    sides = []
    for size, step in zip(kernel, dilation, strict=True):
        total = step * (int(size) - 1) if padding == "same" else 0
        sides.append((total // 2, total - total // 2))
    (top, bottom), (left, right) = sides
    node.target = aten.conv2d.default  # type: ignore[assignment]
    if top == bottom and left == right:
        node.args = (values, weight, bias, stride, [top, left], dilation, groups)
        return
    with node.graph.inserting_before(node):
        padded = node.graph.call_function(aten.constant_pad_nd.default, (values, [left, right, top, bottom]))
    padded.meta = {name: kept for name, kept in values.meta.items() if name != "val"}
    padded.meta["val"] = torch.nn.functional.pad(values.meta["val"], [left, right, top, bottom])
    node.args = (padded, weight, bias, stride, [0, 0], dilation, groups)


def _become_call(node: fx.Node, path: str) -> None:
    node.op, node.target, node.args, node.kwargs = "call_module", path, node.args[:1], {}


def attribute(module: nn.Module, path: str) -> Any:
    """A parameter or buffer by its path."""
    parent, _, name = path.rpartition(".")
    return getattr(module.get_submodule(parent), name)


def _return_one(graph: fx.Graph) -> None:
    """Return the tensor itself, which torch.export puts into a tuple."""
    graph.set_codegen(fx.graph.CodeGen())
    (output,) = (node for node in graph.nodes if node.op == "output")
    ((logits,),) = output.args
    output.args = (logits,)


def check_output(model: nn.Module, example: Tensor) -> None:
    """Refuse a network that cannot take such images in the mode that it is in, or does not return one tensor."""
    name = type(model).__name__
    with torch.no_grad():
        try:
            output = model(example)
        except Exception as error:
            shape = tuple(example.shape[1:])
            raise UserCodeError(
                f"model: {name} cannot take images {shape}: {type(error).__name__}: {first_line(error)}"
            ) from error
    if isinstance(output, Tensor):
        return
    when = ", when it trains," if model.training else ""
    raise UserError(
        f"model: {name} returns{when} a {type(output).__name__}; allowed: one tensor (N, …), chosen by a module around "
        "it or by its own settings, as model.kwargs.aux_logits=false does for torchvision's googlenet"
    )


@contextlib.contextmanager
def _quietly() -> Iterator[None]:
    """Without what torch logs of a failure before it raises: the error says it again."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        yield
    finally:
        logging.disable(before)


def _in_words(error: Exception, model: nn.Module) -> str:
    """What torch.export refuses, where, and what can be done."""
    text = str(error)
    if "specialized" in text or "Constraints violated" in text:
        cause = "it fixes the number of images, which a graph must leave open"
    elif "ata-dependent" in text:
        cause = "what it does depends on the values of a tensor, which a graph cannot hold"
    else:
        said = re.search(r"Explanation: (.*)", text)
        cause = f"{first_line(error)} {said.group(1) if said else ''}".strip()[:300]
    return (
        f"model: torch.export cannot capture {_place(text, model)}: {cause}; allowed: a forward without it, or "
        "backend.flow=eager with a quantizable twin"
    )


def _place(text: str, model: nn.Module) -> str:
    """The module and the line of its source where an error of torch.export arose, as its text tells."""
    frames = [(file, int(line)) for file, line in re.findall(r'File "([^"]+)", line (\d+)', text)]
    own = [(file, line) for file, line in frames if not file.startswith(_TORCH)]
    if not own:
        return type(model).__name__
    file, line = own[-1]
    for path, module in model.named_modules():
        code = type(module).forward.__code__ if hasattr(type(module).forward, "__code__") else None
        if code is not None and code.co_filename == file and line in {number for *_, number in code.co_lines()}:
            return f"{path or 'the network'} ({type(module).__name__}, {file}:{line})"
    return f"{file}:{line}"
