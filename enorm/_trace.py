"""From a model to a plan: symbolic tracing, then one pass that follows each hidden unit."""

from __future__ import annotations

import copy
import operator
import weakref
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, cast

import torch
from torch import fx, nn
from torch.fx.passes.shape_prop import ShapeProp

from enorm._homogeneous import BATCH_NORMS, CONVOLUTIONS, is_elementwise, pooled_axes
from enorm._plan import (
    BatchNormRule,
    Consumer,
    Group,
    Layer,
    Plan,
    Producer,
    Skip,
    UnsupportedModel,
    fingerprint,
)


def trace(
    model: nn.Module,
    example_inputs: Any = None,
    *,
    strict: bool = False,
    exclude: Sequence[str] = (),
) -> Plan:
    """Find which axes of which weights may share a scale without changing the model's function.

    The forward code is traced symbolically (``torch.fx``), in the model's current train or eval
    mode. A layer's rows start a group; operations that are provably positively homogeneous and
    keep units apart carry it on; layers that read it end it. Everything else is a wall: groups
    end there and ``plan.skipped`` says why.

    Args:
        model: the network. Nothing in it is changed or run on data.
        example_inputs: a tensor or a tuple of tensors, used only for their shapes. Without it
            inputs are taken as batched: ``(N, features)`` in front of a Linear and
            ``(N, channels, *positions)`` in front of a convolution.
        strict: raise on the first wall instead of listing it.
        exclude: names of modules whose parameters stay untouched. Naming the last layer leaves
            out the last pair, as the authors' released code does.

    Returns:
        The plan. One without groups is no error here.

    Raises:
        UnsupportedModel: the forward code cannot be traced, or ``strict`` and there is a wall.
        ValueError: ``exclude`` names no module of the model.
    """
    modules = dict(model.named_modules(remove_duplicate=False))
    for name in exclude:
        if name not in modules:
            raise ValueError(f"exclude names {name!r}, which is no module of the model")
    graph_module = symbolic_trace(model)
    shapes = {} if example_inputs is None else _shapes(graph_module, example_inputs)
    print_ = fingerprint(model)
    reference = weakref.ref(model)
    plans = {}
    for rule in ("affine", "ignore"):
        walk = _Walk(model, graph_module.graph, rule, frozenset(exclude), shapes)
        groups, skipped, layers = walk.run()
        plans[rule] = Plan(groups, skipped, layers, walk.batchnorm, print_, reference)
    object.__setattr__(plans["affine"], "_other", plans["ignore"])
    object.__setattr__(plans["ignore"], "_other", plans["affine"])
    plan = plans["affine"]
    walls = [skip for skip in plan.skipped if skip.reason != _EXCLUDED]
    if strict and walls:
        raise UnsupportedModel(f"{walls[0].where}: {walls[0].reason}")
    return plan


_EXCLUDED = "excluded by the caller"


def symbolic_trace(model: nn.Module) -> fx.GraphModule:
    """``torch.fx.symbolic_trace``, its failures told with the line of the model's own code."""
    try:
        return fx.symbolic_trace(model)
    except Exception as error:
        # Whatever the model's own forward code raises under tracing ends here, with its line.
        last = error.__traceback__
        place = ""
        while last is not None:
            code = last.tb_frame.f_code
            if code.co_name == "forward" and "torch" not in code.co_filename.split("/"):
                place = f" at {code.co_filename}:{last.tb_lineno}"
            last = last.tb_next
        raise UnsupportedModel(
            f"{type(model).__name__} cannot be traced{place}: {type(error).__name__}: {error}"
        ) from error


def _shapes(graph_module: fx.GraphModule, example_inputs: Any) -> dict[fx.Node, torch.Size]:
    """Shapes of all intermediate tensors, found on the meta device: nothing is computed."""
    inputs = example_inputs if isinstance(example_inputs, tuple) else (example_inputs,)
    meta = copy.deepcopy(graph_module).to("meta")
    ShapeProp(meta).propagate(*(value.to("meta") for value in inputs))
    found = {}
    for node, twin in zip(graph_module.graph.nodes, meta.graph.nodes, strict=True):
        data = twin.meta.get("tensor_meta")
        if data is not None and hasattr(data, "shape"):
            found[node] = data.shape
    return found


@dataclass(eq=False)
class _Units:
    """The hidden units that one producer made, while their uses are being collected."""

    producer: Producer
    size: int
    consumers: list[Consumer] = field(default_factory=list)
    walls: list[Skip] = field(default_factory=list)
    # Ends with no weight behind them, worth a word only where the units have consumers as well.
    ends: list[Skip] = field(default_factory=list)


@dataclass(frozen=True)
class _Signal:
    """Where units stand in a traced value: along ``axis`` (negative), in blocks if flattened."""

    units: _Units
    axis: int
    flattened: bool = False


class _Walk:
    """Abstract interpretation of a traced graph, one node after the other."""

    def __init__(
        self,
        model: nn.Module,
        graph: fx.Graph,
        batchnorm: BatchNormRule,
        exclude: frozenset[str],
        shapes: dict[fx.Node, torch.Size],
    ) -> None:
        self.modules = dict(model.named_modules(remove_duplicate=False))
        self.graph = graph
        self.batchnorm = batchnorm
        self.exclude = exclude
        self.shapes = shapes
        self.signals: dict[fx.Node, _Signal | None] = {}
        self.depths: dict[fx.Node, int] = {}
        self.units: list[_Units] = []
        self.layers: list[Layer] = []
        self.above = self._above_weights()
        self.unusable = self._unusable_modules(model)

    def _unusable_modules(self, model: nn.Module) -> dict[str, str]:
        """Modules whose own parameters cannot be rescaled as if they were used once, and why."""
        calls = Counter(node.target for node in self.graph.nodes if node.op == "call_module")
        owners: dict[int, list[str]] = {}
        for name, parameter in model.named_parameters(remove_duplicate=False):
            owners.setdefault(id(parameter), []).append(name)
        read = {str(node.target) for node in self.graph.nodes if node.op == "get_attr"}
        reasons: dict[str, str] = {}
        for name, module in self.modules.items():
            own = dict(module.named_parameters(recurse=False))
            names = {f"{name}.{key}" if name else key for key in own}
            if any(name == other or name.startswith(f"{other}.") for other in self.exclude):
                reasons[name] = _EXCLUDED
            elif own and calls[name] > 1:
                reasons[name] = f"called {calls[name]} times"
            elif any(len(owners[id(value)]) > 1 for value in own.values()):
                reasons[name] = "its parameters are shared with another module"
            elif names & read:
                reasons[name] = "the forward code also reads its parameters directly"
            elif module._forward_hooks or module._forward_pre_hooks:
                reasons[name] = "forward hooks may change what passes"
            elif getattr(module, "weight", None) is not None and "weight" not in own:
                reasons[name] = "its weight is computed, not a parameter"
            elif any(isinstance(value, nn.UninitializedParameter) for value in own.values()):
                reasons[name] = "its parameters have no shape before the first forward"
        return reasons

    def _above_weights(self) -> set[fx.Node]:
        """Nodes whose value reaches a weight: behind the others there is nothing to rescale."""
        above: set[fx.Node] = set()
        for node in reversed(self.graph.nodes):
            kind = type(self.modules[str(node.target)]) if node.op == "call_module" else None
            if node in above or kind is nn.Linear or kind in CONVOLUTIONS or kind in BATCH_NORMS:
                above.update((node, *node.all_input_nodes))
        return above

    def run(self) -> tuple[tuple[Group, ...], tuple[Skip, ...], tuple[Layer, ...]]:
        for node in self.graph.nodes:
            self.depths[node] = max((self.depths[i] for i in node.all_input_nodes), default=0)
            self.signals[node] = self._visit(node)
        groups = []
        skipped: dict[Skip, None] = {}
        for units in self.units:
            walls = units.walls + units.ends if units.consumers else units.walls
            if units.consumers and not walls:
                groups.append(Group((units.producer,), tuple(units.consumers), units.size))
            skipped.update(dict.fromkeys(walls))
        return tuple(groups), tuple(skipped), tuple(self.layers)

    def _visit(self, node: fx.Node) -> _Signal | None:
        if node.op == "output":
            for source in node.all_input_nodes:
                if (signal := self.signals[source]) is not None:
                    reason = "its activations are also an output of the model"
                    signal.units.ends.append(Skip(signal.units.producer.module, reason))
            return None
        if node.op == "call_module":
            return self._visit_module(node, self.modules[str(node.target)])
        if node.op in ("call_function", "call_method"):
            return self._visit_function(node)
        return None

    def _visit_module(self, node: fx.Node, module: nn.Module) -> _Signal | None:
        name = str(node.target)
        reason = self.unusable.get(name)
        kind = type(module)
        if kind is nn.Linear or kind in CONVOLUTIONS:
            return self._visit_layer(node, module, name, reason)
        if kind in BATCH_NORMS:
            return self._visit_batchnorm(node, cast(nn.BatchNorm2d, module), name, reason)
        if reason is not None and reason != _EXCLUDED:
            return self._wall(node, reason)
        if kind is nn.Flatten:
            module = cast(nn.Flatten, module)
            return self._flatten(node, module.start_dim, module.end_dim)
        if getattr(module, "return_indices", False):
            return self._wall(node, "returns indices beside the activations")
        return self._visit_operation(node, module)

    def _visit_operation(self, node: fx.Node, operation: Any) -> _Signal | None:
        """Modules, functions and methods of one input that keep units apart."""
        signal = self._only_signal(node)
        if signal is None:
            return None
        if is_elementwise(operation):
            return signal
        axes = pooled_axes(operation)
        if axes is None:
            return self._wall(node, "not known to be positively homogeneous")
        if signal.axis != -(axes + 1) or signal.flattened:
            return self._wall(node, "pools over hidden units")
        return signal

    def _visit_function(self, node: fx.Node) -> _Signal | None:
        target = node.target
        if target in (getattr, operator.getitem) or target in ("size", "dim"):
            if target is operator.getitem and self._only_signal(node) is not None:
                return self._wall(node, "indexes the activations")
            if target is getattr and node.args[1] not in ("shape", "ndim", "dtype", "device"):
                return self._wall(node, f"reads attribute {node.args[1]!r} of the activations")
            return None
        if target in (torch.flatten, "flatten"):
            start = _argument(node, 1, "start_dim", 0)
            end = _argument(node, 2, "end_dim", -1)
            return self._flatten(node, start, end)
        if target in (torch.reshape, "reshape", "view"):
            return self._reshape(node)
        if node.kwargs.get("return_indices"):
            return self._wall(node, "returns indices beside the activations")
        return self._visit_operation(node, target)

    def _visit_layer(
        self, node: fx.Node, module: nn.Module, name: str, reason: str | None
    ) -> _Signal | None:
        signal = self._only_signal(node)
        weight = module._parameters.get("weight")
        self.depths[node] += 1
        if reason is None and weight is not None and not weight.is_floating_point():
            reason = f"its weight is {weight.dtype}, not floating point"
        if getattr(module, "groups", 1) != 1:
            reason = reason or "grouped convolution"
        # A channel axis stands before the positions; features stand last.
        axis = -1 - CONVOLUTIONS.get(type(module), 0)
        if weight is not None and not isinstance(weight, nn.UninitializedParameter):
            bias = f"{name}.bias" if module._parameters.get("bias") is not None else None
            if not any(layer.module == name for layer in self.layers):
                kind = type(module).__name__
                layer = Layer(name, kind, f"{name}.weight", bias, self.depths[node])
                self.layers.append(layer)
        if reason is not None or weight is None:
            reason = reason or "it has no weight"
            self._note(node, reason)
            return self._wall(node, reason)
        if signal is not None:
            self._consume(node, signal, name, weight.shape[1], axis)
        units = _Units(Producer(name, f"{name}.weight", bias), weight.shape[0])
        self.units.append(units)
        return _Signal(units, axis)

    def _consume(self, node: fx.Node, signal: _Signal, name: str, inputs: int, axis: int) -> None:
        size = signal.units.size
        if signal.axis != axis:
            self._wall(node, "reads the activations along another axis than their units")
        elif not signal.flattened and inputs != size:
            self._wall(node, f"reads {inputs} units where {size} were produced")
        elif inputs % size:
            self._wall(node, f"reads {inputs} values, no multiple of {size} units")
        else:
            consumer = Consumer(name, f"{name}.weight", inputs // size)
            signal.units.consumers.append(consumer)

    def _visit_batchnorm(
        self, node: fx.Node, module: nn.BatchNorm2d, name: str, reason: str | None
    ) -> _Signal | None:
        signal = self._only_signal(node)
        features = module.num_features
        affine = module._parameters.get("weight") is not None
        if self.batchnorm == "ignore":
            if signal is None:
                return None
            if features % signal.units.size:
                return self._wall(node, "normalizes along another axis than the units")
            return signal
        # Its input is a wall that needs no word (the rows in front simply stay); its output is a
        # fresh set of units whose scale the affine parameters carry.
        if signal is not None:
            normalized = f"its activations are also normalized by {name}"
            signal.units.ends.append(Skip(signal.units.producer.module, normalized))
        if affine:
            bias = f"{name}.bias" if module._parameters.get("bias") is not None else None
            kind = type(module).__name__
            layer = Layer(name, kind, f"{name}.weight", bias, self.depths[node])
            if not any(known.module == name for known in self.layers):
                self.layers.append(layer)
        if reason is not None or not affine:
            reason = reason or "BatchNorm without affine parameters cannot carry a scale"
            self._note(node, reason)
            return None
        # Axis 1 of the batch: features of a 2-d input, else channels before the positions.
        dimensions = self._dimensions(node, type(module), signal)
        if dimensions is None:
            self._note(node, "the shape of its input is not known: pass example_inputs")
            return None
        units = _Units(Producer(name, f"{name}.weight", bias), features)
        self.units.append(units)
        return _Signal(units, 1 - dimensions)

    def _dimensions(
        self, node: fx.Node, kind: type[nn.Module], signal: _Signal | None
    ) -> int | None:
        """Number of axes of BatchNorm's input, batch included."""
        if node in self.shapes:
            return len(self.shapes[node])
        if kind is nn.BatchNorm2d:
            return 4
        if kind is nn.BatchNorm3d:
            return 5
        if signal is None:
            return None
        return 1 - signal.axis if signal.axis != -1 else 2

    def _flatten(self, node: fx.Node, start: Any, end: Any) -> _Signal | None:
        signal = self._only_signal(node)
        if signal is None:
            return None
        source = self.shapes.get(node.all_input_nodes[0])
        to_the_end = end == -1 or (source is not None and end == len(source) - 1)
        if start != 1 or not to_the_end:
            return self._wall(node, "flattens other axes than all but the first")
        return self._merge(node, signal, source)

    def _reshape(self, node: fx.Node) -> _Signal | None:
        """``view(x.size(0), -1)`` is a flatten; other shapes need to be seen to be believed."""
        signal = self._only_signal(node)
        if signal is None:
            return None
        source = node.all_input_nodes[0]
        before, after = self.shapes.get(source), self.shapes.get(node)
        sizes = node.args[1:]
        if len(sizes) == 1 and isinstance(sizes[0], (tuple, list)):
            sizes = tuple(sizes[0])
        if before is not None and after is not None:
            if len(after) == 2 and after[0] == before[0]:
                return self._merge(node, signal, before)
        elif len(sizes) == 2 and sizes[1] == -1 and _is_batch_size(sizes[0], source):
            return self._merge(node, signal, None)
        return self._wall(node, "reshapes in a way not known to keep units apart")

    def _merge(self, node: fx.Node, signal: _Signal, source: torch.Size | None) -> _Signal | None:
        """All axes but the first become one, each unit's positions side by side."""
        if signal.axis == -1:
            # Of an (N, features) input nothing changes; of a longer one units would interleave.
            if source is not None and len(source) != 2:
                return self._wall(node, "flattens positions in front of the units")
            return signal
        if source is not None and len(source) != 1 - signal.axis:
            return self._wall(node, "flattens an unbatched input")
        return replace(signal, axis=-1, flattened=True)

    def _only_signal(self, node: fx.Node) -> _Signal | None:
        """The signal that ``node`` reads; several at once meet at a wall."""
        signals = [self.signals[source] for source in node.all_input_nodes]
        if len(signals) > 1 and any(signal is not None for signal in signals):
            if node.target in (torch.reshape, "reshape", "view"):
                return signals[0]
            self._wall(node, "combines several values")
            return None
        return signals[0] if signals else None

    def _wall(self, node: fx.Node, reason: str) -> _Signal | None:
        """End every group that ``node`` reads; what comes out carries no units."""
        skip = Skip(self._where(node), reason)
        for source in node.all_input_nodes:
            if (signal := self.signals[source]) is not None:
                units = signal.units
                (units.walls if node in self.above else units.ends).append(skip)
        return None

    def _note(self, node: fx.Node, reason: str) -> None:
        """A wall at the output of ``node``: the units it makes get no scale."""
        units = _Units(Producer(str(node.target), "", None), 0)
        units.walls.append(Skip(self._where(node), reason))
        self.units.append(units)

    def _where(self, node: fx.Node) -> str:
        if node.op == "call_module":
            return f"{node.target} ({type(self.modules[str(node.target)]).__name__})"
        name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")
        # Attribute reads are recorded before fx knows which module's code asks for them.
        stack = node.meta.get("nn_module_stack") or {} if node.target is not getattr else {}
        inside = [path for path in stack if path]
        return f"{name} in {inside[-1]}.forward" if inside else f"{name} in forward"


def _argument(node: fx.Node, position: int, name: str, default: Any) -> Any:
    if len(node.args) > position:
        return node.args[position]
    return node.kwargs.get(name, default)


def _is_batch_size(size: Any, tensor: fx.Node) -> bool:
    """Whether ``size`` is ``tensor.size(0)`` or ``tensor.shape[0]``."""
    if not isinstance(size, fx.Node):
        return False
    if size.target == "size":
        return size.args[0] is tensor and _argument(size, 1, "dim", None) == 0
    if size.target is operator.getitem and size.args[1] == 0:
        shape = size.args[0]
        if isinstance(shape, fx.Node) and shape.args[0] is tensor:
            return shape.target == "size" or shape.args[1:] == ("shape",)
    return False
