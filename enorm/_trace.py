"""From a model to a plan: symbolic tracing, then one pass that follows each hidden unit."""

from __future__ import annotations

import operator
import weakref
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, cast

import torch
from torch import fx, nn

from enorm._graph import Recording, UnsupportedModel, record
from enorm._homogeneous import BATCH_NORMS, CONVOLUTIONS, is_elementwise, pooled_axes
from enorm._modules import EXCLUDED, fingerprint, unusable
from enorm._plan import (
    BatchNormRule,
    Consumer,
    Group,
    Layer,
    Plan,
    Producer,
    Skip,
)


def trace(
    model: nn.Module,
    example_inputs: Any = None,
    *,
    strict: bool = False,
    exclude: Sequence[str] = (),
) -> Plan:
    """Find which axes of which weights may share a scale without changing the model's function.

    The forward code is traced symbolically (``torch.fx``) in eval and in train mode, and a group
    has to hold in both. Of arguments with a default only those that ``example_inputs`` reaches are
    taken as inputs. Code that branches on anything else but the model's mode and such arguments
    is seen as it runs for a symbolic input.

    A layer's rows start a group; operations that are provably positively homogeneous and keep
    units apart carry it on; layers that read it end it. Everything else is a wall: groups end
    there and ``plan.skipped`` says why.

    Args:
        model: the network. Nothing in it is changed or run on data.
        example_inputs: a tensor or a tuple of tensors, used only for their shapes. Without it
            inputs are taken as batched: ``(N, features)`` where BatchNorm or a flatten follows a
            Linear, ``(N, channels, *positions)`` in front of a convolution.
        strict: raise on the first wall instead of listing it.
        exclude: names of modules whose parameters stay untouched. Naming the last layer leaves
            out the last pair, as the authors' released code does.

    Returns:
        The plan. One without groups is no error here.

    Raises:
        UnsupportedModel: the forward code cannot be traced, ``example_inputs`` do not fit it, or
            ``strict`` and there is a wall.
        ValueError: ``exclude`` names no module of the model.
        TypeError: ``example_inputs`` or ``exclude`` is something else.
    """
    if isinstance(exclude, str):
        raise TypeError(f"exclude must be a list of module names, got the string {exclude!r}")
    modules = dict(model.named_modules(remove_duplicate=False))
    for name in exclude:
        if name not in modules:
            raise ValueError(f"exclude names {name!r}, which is no module of the model")
    recordings = record(model, example_inputs)
    reasons = unusable(model, recordings, frozenset(exclude))
    print_ = fingerprint(model)
    reference = weakref.ref(model)
    plans = {}
    for rule in ("affine", "ignore"):
        walk = _Walk(model, rule, reasons)
        for recording in recordings:
            walk.follow(recording)
        groups, skipped, layers = walk.result()
        plans[rule] = Plan(groups, skipped, layers, walk.batchnorm, print_, reference)
    object.__setattr__(plans["affine"], "_other", plans["ignore"])
    object.__setattr__(plans["ignore"], "_other", plans["affine"])
    plan = plans["affine"]
    walls = [skip for skip in plan.skipped if skip.reason != EXCLUDED]
    if strict and walls:
        raise UnsupportedModel(f"{walls[0].where}: {walls[0].reason}")
    return plan


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
    """Abstract interpretation of recorded graphs, one node after the other.

    Several graphs of one model are ways that its forward code may go. A unit has the readers that
    it has on any of them, and columns that read different units on two of them are a wall.
    """

    def __init__(
        self, model: nn.Module, batchnorm: BatchNormRule, reasons: Mapping[str, str]
    ) -> None:
        self.modules = dict(model.named_modules(remove_duplicate=False))
        self.batchnorm = batchnorm
        self.unusable = reasons
        self.shapes: dict[fx.Node, torch.Size] = {}
        self.signals: dict[fx.Node, _Signal | None] = {}
        self.depths: dict[fx.Node, int] = {}
        self.above: set[fx.Node] = set()
        self.made: dict[str, _Units] = {}
        self.read: dict[str, _Units | None] = {}
        self.noted: list[Skip] = []
        self.weights = {name for name, value in model.named_parameters() if _is_matrix(value)}
        self.called: set[str] = set()
        self.layers: dict[str, Layer] = {}

    def follow(self, recording: Recording) -> None:
        """Take in one way through the forward code."""
        graph = recording.graph_module.graph
        self.shapes.update(recording.shapes)
        self.called |= {str(node.target) for node in graph.nodes if node.op == "call_module"}
        # Nodes whose value reaches a weight: behind the others there is nothing to rescale.
        for node in reversed(graph.nodes):
            weighted = node.op == "call_module" and any(
                True for _ in self.modules[str(node.target)].parameters()
            )
            if node in self.above or weighted:
                self.above.update((node, *node.all_input_nodes))
        for node in graph.nodes:
            self.depths[node] = max((self.depths[i] for i in node.all_input_nodes), default=0)
            self.signals[node] = self._visit(node)

    def result(self) -> tuple[tuple[Group, ...], tuple[Skip, ...], tuple[Layer, ...]]:
        """Groups, walls and layers of all ways followed."""
        groups = []
        skipped = dict.fromkeys(self.noted)
        for units in self.made.values():
            walls = units.walls + units.ends if units.consumers else units.walls
            if units.consumers and not walls:
                groups.append(Group((units.producer,), tuple(units.consumers), units.size))
            skipped.update(dict.fromkeys(walls))
        return tuple(groups), tuple(skipped), tuple(self.layers.values())

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
        if node.op == "get_attr":
            owner, _, _ = str(node.target).rpartition(".")
            if owner not in self.called and str(node.target) in self.weights:
                reason = "read by the forward code itself, not by a Linear or convolution module"
                self.noted.append(Skip(str(node.target), reason))
        return None

    def _visit_module(self, node: fx.Node, module: nn.Module) -> _Signal | None:
        name = str(node.target)
        reason = self.unusable.get(name)
        kind = type(module)
        if kind is nn.Linear or kind in CONVOLUTIONS:
            return self._visit_layer(node, module, name, reason)
        if kind in BATCH_NORMS:
            return self._visit_batchnorm(node, cast(nn.BatchNorm2d, module), name, reason)
        if any(_is_matrix(value) for value in module.parameters()):
            reason = reason or "weights of this kind of module are not rescaled"
            self._note(node, reason)
            return self._wall(node, reason)
        if reason is not None and reason != EXCLUDED:
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
        if target in _RESHAPES:
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
        if getattr(module, "groups", 1) != 1:
            reason = reason or "grouped convolution"
        # A channel axis stands before the positions; features stand last.
        axis = -1 - CONVOLUTIONS.get(type(module), 0)
        bias = f"{name}.bias" if module._parameters.get("bias") is not None else None
        if weight is not None and not isinstance(weight, nn.UninitializedParameter):
            self._count(node, name, type(module).__name__, bias)
        if reason is not None or weight is None:
            reason = reason or "it has no weight"
            self._note(node, reason)
            return self._wall(node, reason)
        self._consume(node, signal, name, weight.shape[1], axis)
        return _Signal(self._units(name, bias, weight.shape[0]), axis)

    def _count(self, node: fx.Node, name: str, kind: str, bias: str | None) -> None:
        """The energy counts this weight."""
        self.layers.setdefault(name, Layer(name, kind, f"{name}.weight", bias, self.depths[node]))

    def _units(self, name: str, bias: str | None, size: int) -> _Units:
        return self.made.setdefault(name, _Units(Producer(name, f"{name}.weight", bias), size))

    def _consume(
        self, node: fx.Node, signal: _Signal | None, name: str, inputs: int, axis: int
    ) -> None:
        units = None if signal is None else signal.units
        before = self.read.setdefault(name, units)
        if before is not units:
            for other in (before, units):
                if other is not None:
                    reason = "reads other units in train mode than in eval mode"
                    other.walls.append(Skip(self._where(node), reason))
            return
        if signal is None or units is None:
            return
        if signal.axis != axis:
            self._wall(node, "reads the activations along another axis than their units")
        elif not signal.flattened and inputs != units.size:
            self._wall(node, f"reads {inputs} units where {units.size} were produced")
        elif inputs % units.size:
            self._wall(node, f"reads {inputs} values, no multiple of {units.size} units")
        else:
            consumer = Consumer(name, f"{name}.weight", inputs // units.size)
            if consumer not in units.consumers:
                units.consumers.append(consumer)

    def _visit_batchnorm(
        self, node: fx.Node, module: nn.BatchNorm2d, name: str, reason: str | None
    ) -> _Signal | None:
        signal = self._only_signal(node)
        features = module.num_features
        affine = module._parameters.get("weight") is not None
        if self.batchnorm == "ignore":
            if signal is None:
                return None
            if reason is not None and reason != EXCLUDED:
                return self._wall(node, reason)
            if features % signal.units.size:
                return self._wall(node, "normalizes along another axis than the units")
            return signal
        # Its input is a wall that needs no word (the rows in front simply stay); its output is a
        # fresh set of units whose scale the affine parameters carry.
        if signal is not None:
            normalized = f"its activations are also normalized by {name}"
            signal.units.ends.append(Skip(signal.units.producer.module, normalized))
        bias = f"{name}.bias" if module._parameters.get("bias") is not None else None
        if affine:
            self._count(node, name, type(module).__name__, bias)
        if reason is not None or not affine:
            reason = reason or "BatchNorm without affine parameters cannot carry a scale"
            self._note(node, reason)
            return None
        # Axis 1 of the batch: features of a 2-d input, else channels before the positions.
        dimensions = self._dimensions(node, type(module), signal)
        if dimensions is None:
            self._note(node, "the shape of its input is not known: pass example_inputs")
            return None
        return _Signal(self._units(name, bias, features), 1 - dimensions)

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
        return None if signal is None else 1 - signal.axis

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
        sources = node.all_input_nodes
        if len(sources) < 2 or not any(self.signals[source] for source in sources):
            return self.signals[sources[0]] if sources else None
        # Sizes are values too, but carry no units.
        first = node.args[0] if node.args else None
        if node.target in _RESHAPES and not any(
            self.signals[source] for source in sources if source is not first
        ):
            return self.signals[sources[0]]
        return self._wall(node, "combines several values")

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
        self.noted.append(Skip(self._where(node), reason))

    def _where(self, node: fx.Node) -> str:
        if node.op == "call_module":
            return f"{node.target} ({type(self.modules[str(node.target)]).__name__})"
        name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")
        # Attribute reads are recorded before fx knows which module's code asks for them.
        stack = node.meta.get("nn_module_stack") or {} if node.target is not getattr else {}
        inside = [path for path in stack if path]
        return f"{name} in {inside[-1]}.forward" if inside else f"{name} in forward"


_RESHAPES = (torch.reshape, "reshape", "view")


def _is_matrix(parameter: nn.Parameter) -> bool:
    return isinstance(parameter, nn.UninitializedParameter) or parameter.dim() > 1


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
