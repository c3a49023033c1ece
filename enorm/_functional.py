"""Layers that forward code calls as functions, as the modules that compute the same."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.fx.node import map_arg

from enorm._homogeneous import BatchNorm
from enorm._memory import is_lazy


def name_modules(graph_module: fx.GraphModule) -> dict[fx.Node, fx.Node]:
    """Call modules where the graph calls the functions of layers.

    That is so where the function is a layer's or a normalization's, its ``weight`` is the
    parameter of that name of a module inside the model, its ``bias`` that module's or None, and no
    option is a value of the graph: so it is in a subclass of ``nn.Linear``, or of
    ``nn.BatchNorm2d`` that also activates. A module of torch's own class that holds these very
    parameters takes the function's place; :func:`owner_of` tells whose they are.

    Returns:
        Nodes that were replaced, and by which.
    """
    graph = graph_module.graph
    replaced: dict[fx.Node, fx.Node] = {}
    for node in graph.nodes:
        if node.op != "call_function" or (found := _stand_in(graph_module, node)) is None:
            continue
        owner, value, module = found
        place = f"stand_in_{node.name}"
        while hasattr(graph_module, place):
            place += "_"
        graph_module.add_submodule(place, module)
        with graph.inserting_before(node):
            call = graph.call_module(place, (value,))
        call.meta = node.meta | {_OWNER: owner}
        node.replace_all_uses_with(call)
        reads = [one for one in node.all_input_nodes if one.op == "get_attr"]
        graph.erase_node(node)
        for read in reads:
            if not read.users:
                graph.erase_node(read)
        replaced[node] = call
    graph_module.recompile()
    return replaced


def is_layer(target: Any) -> bool:
    """Whether it is the function of a layer or a normalization."""
    return target in _FUNCTIONS


def owner_of(node: fx.Node) -> str:
    """The name of the module that a node calls, or whose parameters its function was given."""
    return str(node.meta.get(_OWNER, node.target))


# Attributes that tell what a tensor is like, not what it holds.
DESCRIBING = frozenset(
    ("device", "dtype", "grad_fn", "is_cuda", "layout", "ndim", "requires_grad", "shape")
)


# Attributes of a tensor that are no tensors, and that the walk and the tracer know.
NUMBERS = ("shape", "ndim", "dtype", "device")


def is_number(node: fx.Node, numbers: Collection[fx.Node]) -> bool:
    """Whether it is no tensor: a size, what Python computes from sizes, a dtype or a device."""
    if node.op == "call_method":
        return node.target in ("size", "dim")
    if node.op != "call_function":
        return False
    if node.target is getattr and node.args[1] in NUMBERS:
        return True
    sources = node.all_input_nodes
    of_python = getattr(node.target, "__module__", None) in ("_operator", "builtins", "math")
    return of_python and bool(sources) and all(one in numbers for one in sources)


def reads_values(node: fx.Node) -> bool:
    """Whether it is a ``get_attr`` node of which more than a description is used."""
    described = all(one.target is getattr and one.args[1] in DESCRIBING for one in node.users)
    return node.op == "get_attr" and (not described or "read" in node.meta)


def attribute(graph_module: fx.GraphModule, node: fx.Node) -> Any:
    """What a ``get_attr`` node reads."""
    value: Any = graph_module
    for name in str(node.target).split("."):
        value = getattr(value, name)
    return value


_OWNER = "owner of the parameters"
# Whether a module had forward hooks, or another forward, when it was called.
HOOKED = "forward hooks"


def _stand_in(graph_module: fx.GraphModule, node: fx.Node) -> tuple[str, fx.Node, nn.Module] | None:
    """Whose parameters a function is given, the value it reads, and a module instead."""
    names, make = _FUNCTIONS.get(node.target, ((), None))
    given = dict(zip(names, node.args, strict=False)) | node.kwargs
    value, weight, bias = (given.pop(name, None) for name in ("input", "weight", "bias"))
    owner, own = _parameter(graph_module, weight, "weight")
    if make is None or own is None or own.numel() == 0 or not isinstance(value, fx.Node):
        return None
    its_owner, its = _parameter(graph_module, bias, "bias")
    if bias is not None and (its is None or its_owner != owner):
        return None
    options = {name: _statistics(graph_module, one) for name, one in given.items()}
    if not options.keys() <= set(names) or any(map(_is_recorded, options.values())):
        return None
    try:
        module = make(own, options)
    except (TypeError, ValueError, RuntimeError):
        # No such module has these sizes or options.
        return None
    module.register_parameter("weight", own)
    module.register_parameter("bias", its)
    return owner, value, module


def _parameter(
    graph_module: fx.GraphModule, node: Any, key: str
) -> tuple[str, nn.Parameter | None]:
    """The module whose parameter ``key`` a node reads, by name, and that parameter."""
    if isinstance(node, fx.Node) and node.op == "get_attr":
        owner, _, name = str(node.target).rpartition(".")
        value = attribute(graph_module, node)
        if owner and name == key and isinstance(value, nn.Parameter) and not is_lazy(value):
            return owner, value
    return "", None


def _statistics(graph_module: fx.GraphModule, value: Any) -> Any:
    """What a node reads that is no parameter; all else as it is."""
    if not isinstance(value, fx.Node) or value.op != "get_attr":
        return value
    found = attribute(graph_module, value)
    return value if isinstance(found, nn.Parameter) else found


def _is_recorded(value: Any) -> bool:
    found: list[fx.Node] = []
    map_arg(value, found.append)
    return bool(found)


def _linear(weight: Tensor, options: dict[str, Any]) -> nn.Module:
    outputs, inputs = weight.shape
    return nn.Linear(inputs, outputs, device="meta", **options)


def _convolution(kind: type[nn.Module], transposed: bool) -> Callable[..., nn.Module]:
    def make(weight: Tensor, options: dict[str, Any]) -> nn.Module:
        rows, columns, *kernel = weight.shape
        inputs, outputs = columns * options.get("groups", 1), rows
        if transposed:
            inputs, outputs = rows, columns * options.get("groups", 1)
        return kind(inputs, outputs, tuple(kernel), device="meta", **options)

    return make


def _batch_norm(weight: Tensor, options: dict[str, Any]) -> nn.Module:
    statistics = {name: options.pop(name) for name in ("running_mean", "running_var")}
    training = options.pop("training", False)
    module = BatchNorm(weight.numel(), device="meta", **options).train(training)
    for name, value in statistics.items():
        module.register_buffer(name, value)
    return module


def _layer_norm(weight: Tensor, options: dict[str, Any]) -> nn.Module:
    return nn.LayerNorm(device="meta", **options)


def _rms_norm(weight: Tensor, options: dict[str, Any]) -> nn.Module:
    return nn.RMSNorm(device="meta", **options)


def _group_norm(weight: Tensor, options: dict[str, Any]) -> nn.Module:
    return nn.GroupNorm(num_channels=weight.numel(), device="meta", **options)


_CONVOLUTION = ("input", "weight", "bias", "stride", "padding", "dilation", "groups")
_TRANSPOSED = (*_CONVOLUTION[:5], "output_padding", "groups", "dilation")
_STATISTICS = ("running_mean", "running_var")

# Function → the names of its arguments in order, and what makes the module from its options.
_FUNCTIONS: dict[Any, tuple[tuple[str, ...], Callable[..., nn.Module]]] = {
    F.linear: (("input", "weight", "bias"), _linear),
    torch.conv1d: (_CONVOLUTION, _convolution(nn.Conv1d, False)),
    torch.conv2d: (_CONVOLUTION, _convolution(nn.Conv2d, False)),
    torch.conv3d: (_CONVOLUTION, _convolution(nn.Conv3d, False)),
    torch.conv_transpose1d: (_TRANSPOSED, _convolution(nn.ConvTranspose1d, True)),
    torch.conv_transpose2d: (_TRANSPOSED, _convolution(nn.ConvTranspose2d, True)),
    torch.conv_transpose3d: (_TRANSPOSED, _convolution(nn.ConvTranspose3d, True)),
    F.batch_norm: (
        ("input", *_STATISTICS, "weight", "bias", "training", "momentum", "eps"),
        _batch_norm,
    ),
    F.layer_norm: (("input", "normalized_shape", "weight", "bias", "eps"), _layer_norm),
    F.rms_norm: (("input", "normalized_shape", "weight", "eps"), _rms_norm),
    F.group_norm: (("input", "num_groups", "weight", "bias", "eps"), _group_norm),
}
