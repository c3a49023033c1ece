"""Follows each hidden unit through the recorded forward code."""

from __future__ import annotations

import operator
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import fx, nn
from torch.fx.node import map_arg

from enorm._axes import argument, from_the_end, indexed, is_single, widened, without
from enorm._functional import attribute, is_layer, is_number, owner_of
from enorm._graph import Recording
from enorm._homogeneous import (
    BATCH_NORMS,
    CASTS,
    CHANNEL_AXES,
    CLIPS,
    CONCATENATIONS,
    CONVOLUTIONS,
    EXTREMA,
    LAYER_NORMS,
    MOVING,
    NEW,
    PADDING,
    PERMUTATIONS,
    PRODUCTS,
    QUOTIENTS,
    REDUCTIONS,
    RESHAPES,
    RESIZING,
    SQUEEZES,
    STACKS,
    SUMS,
    TRANSPOSED,
    UNSQUEEZES,
    BatchNorm,
    is_elementwise,
    is_registered,
    key_of,
    pooled_axes,
    sizes_of,
)
from enorm._memory import is_lazy
from enorm._modules import EXCLUDED
from enorm._plan import BatchNormRule, Consumer, Group, Layer, Producer, Skip
from enorm._units import UNCERTAIN, Signal, Units
from enorm._unsupported import UnsupportedModel


class Walk:
    """Abstract interpretation of recorded graphs, one node after the other.

    Several graphs of one model are ways that its forward code may go. A unit has the readers that
    it has on any of them, and columns that read different units on two of them are a wall.

    A value without a signal does not change when units are rescaled: whatever ends a signal pins
    its units.
    """

    def __init__(
        self, model: nn.Module, batchnorm: BatchNormRule, reasons: Mapping[str, str]
    ) -> None:
        self.modules: dict[fx.Node, nn.Module] = {}
        self.batchnorm = batchnorm
        self.unusable = reasons
        self.shapes: dict[fx.Node, torch.Size] = {}
        self.given = False
        self.asserted: dict[fx.Node, int] = {}
        self.numbers: set[fx.Node] = set()
        self.long: set[fx.Node] = set()
        self.extrema: set[fx.Node] = set()
        self.dtypes = {
            name: value.dtype
            for name, value in model.named_parameters(remove_duplicate=False)
            if value.is_floating_point()
        }
        self.signals: dict[fx.Node, Signal | None] = {}
        self.depths: dict[fx.Node, int] = {}
        self.above: set[fx.Node] = set()
        self.made: dict[str, Units] = {}
        self.read: dict[str, Signal | None] = {}
        self.noted: list[Skip] = []
        self.weights = {name for name, value in model.named_parameters() if _is_matrix(value)}
        self.called: set[str] = set()
        self.layers: dict[str, Layer] = {}

    def follow(self, recording: Recording) -> None:
        """Take in one way through the forward code."""
        graph = recording.graph_module.graph
        self.shapes.update(recording.shapes)
        self.given |= bool(recording.shapes)
        self.modules |= recording.calls()
        self.called |= set(map(owner_of, recording.calls()))
        # Nodes whose value reaches a weight: behind the others there is nothing to rescale.
        for node in reversed(graph.nodes):
            weighted = node.op == "call_module" and any(
                True for _ in self.modules[node].parameters()
            )
            if node in self.above or weighted:
                self.above.update((node, *node.all_input_nodes))
        for node in graph.nodes:
            self.depths[node] = max((self.depths[i] for i in node.all_input_nodes), default=0)
            if node.op == "get_attr" and isinstance(
                value := attribute(recording.graph_module, node), torch.Tensor
            ):
                self.shapes[node] = value.shape
            if is_number(node, self.numbers):
                self.numbers.add(node)
            if (asserted := _asserted(node)) is not None:
                self.asserted |= asserted
            self.signals[node] = self._visit(node)
            if self._is_long(node):
                self.long.add(node)
            if node in recording.kept:
                self._end(node, "the forward code keeps its activations")

    def _is_long(self, node: fx.Node) -> bool:
        """Whether it has positions behind its channels, as far as nothing has taken them away."""
        if node in self.modules:
            kind = type(self.modules[node])
            if kind in CONVOLUTIONS or kind in TRANSPOSED:
                return True
            if kind is nn.Flatten:
                return False
        shortens = node.target in _SHORTEN or node.target in REDUCTIONS or node.target in RESHAPES
        return not shortens and any(one in self.long for one in node.all_input_nodes)

    def result(self) -> tuple[tuple[Group, ...], tuple[Skip, ...], tuple[Layer, ...]]:
        """Groups, walls and layers of all ways followed."""
        groups = []
        skipped = dict.fromkeys(self.noted)
        order = {name: place for place, name in enumerate(self.layers)}
        free = []
        for units in dict.fromkeys(units.root() for units in self.made.values()):
            walls = units.walls + units.ends if units.consumers else units.walls
            skipped.update(dict.fromkeys(walls))
            if units.consumers and not walls and not units.pinned:
                free.append(units)
        for units in _with_a_way_out(free):
            producers = sorted(units.producers, key=lambda one: order[one.module])
            consumers = sorted(units.consumers, key=lambda one: (order[one.module], one.start))
            groups.append(Group(tuple(producers), tuple(consumers), units.size))
        groups.sort(key=lambda group: order[group.producers[0].module])
        return tuple(groups), tuple(skipped), tuple(self.layers.values())

    def _visit(self, node: fx.Node) -> Signal | None:
        if node.op == "output":
            for source in node.all_input_nodes:
                self._end(source, "its activations are also an output of the model")
            return None
        if node.op == "call_module":
            return self._visit_module(node, self.modules[node])
        if node.op in ("call_function", "call_method"):
            return self._visit_function(node)
        if node.op == "get_attr":
            owner, _, _ = str(node.target).rpartition(".")
            if owner not in self.called and str(node.target) in self.weights:
                reason = "read by the forward code itself, not by a Linear or convolution module"
                self.noted.append(Skip(str(node.target), reason))
        return None

    def _visit_module(self, node: fx.Node, module: nn.Module) -> Signal | None:
        name = owner_of(node)
        reason = self.unusable.get(name)
        kind = type(module)
        if not node.all_input_nodes and any(True for _ in module.parameters()):
            raise UnsupportedModel(
                f"{name} ({kind.__name__}) is called without a value that could be recorded, as "
                "with an argument's default: pass example_inputs that reach this argument"
            )
        if kind is nn.Linear or kind in CONVOLUTIONS or kind in TRANSPOSED:
            return self._visit_layer(node, module, name, reason)
        if kind in BATCH_NORMS or kind in LAYER_NORMS:
            return self._visit_norm(node, module, name, reason)
        if reason is None and is_registered(module):
            return self._visit_operation(node, module)
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
        if kind is nn.Threshold:
            module = cast(nn.Threshold, module)
            return self._clip(node, (module.threshold, module.value))
        if kind in PADDING:
            if getattr(module, "value", 0) != 0:
                return self._wall(node, "pads with a constant")
            return self._pad(node, PADDING[kind])
        return self._visit_operation(node, module)

    def _visit_operation(self, node: fx.Node, operation: Any) -> Signal | None:
        """Modules, functions and methods of one input that keep units apart."""
        signal = self._only_signal(node)
        if signal is None:
            return None
        if key_of(operation) in RESIZING:
            return self._on_positions(node, signal)
        if is_elementwise(operation):
            return signal
        axes = pooled_axes(operation)
        if getattr(operation, "is_scripted", False) is True:
            return self._wall(node, "torch.jit has compiled it, so that its code cannot be seen")
        if key_of(operation) in MOVING:
            return self._wall(node, "moves or splits values, which is not followed")
        if axes is None:
            return self._wall(node, "not known to be positively homogeneous")
        if signal.axis != -(axes + 1) or signal.flattened:
            return self._wall(node, "pools over hidden units")
        return signal

    def _on_positions(self, node: fx.Node, signal: Signal) -> Signal | None:
        """An operation that takes the second axis for the channels."""
        dimensions = self._dimensions_of(node.all_input_nodes[0], signal)
        if dimensions in (None, UNCERTAIN):
            return self._wall(node, self._ask("the number of axes is not known"))
        if signal.flattened or signal.axis != 1 - dimensions:
            return self._wall(node, "resizes along the axis of the hidden units")
        return signal

    def _pad(self, node: fx.Node, axes: int) -> Signal | None:
        signal = self._only_signal(node)
        if signal is None:
            return None
        if signal.flattened or axes >= -signal.axis:
            return self._wall(node, "pads along the axis of the hidden units")
        return signal

    def _visit_function(self, node: fx.Node) -> Signal | None:
        target = node.target
        if node in self.numbers:
            return None
        if target is setattr:
            return self._wall(node, "replaces the data of a value")
        if target is operator.setitem:
            return self._wall(node, "writes into a part of a value")
        if target in (getattr, operator.getitem) and node.args[0] in self.extrema:
            return self._extremum(node)
        if target is getattr:
            return self._wall(node, f"reads attribute {node.args[1]!r} of the activations")
        if not any(self.signals[source] for source in node.all_input_nodes):
            return None
        if target in _LIKE and self.signals[node.all_input_nodes[0]] is None:
            return None
        if target in NEW:
            return None
        if target in _LIKE and self._are_alike(node.args):
            return self.signals[node.all_input_nodes[0]]
        if node.kwargs.get("out") is not None:
            return self._wall(node, "writes into another tensor")
        followed = next((names for kinds, names in _ARGUMENTS if target in kinds), None)
        if followed is not None and (other := node.kwargs.keys() - followed - {"out"}):
            return self._wall(node, f"has the argument {min(other)!r}, which is not followed")
        if target in (torch.flatten, "flatten"):
            start = argument(node, 1, "start_dim", 0)
            end = argument(node, 2, "end_dim", -1)
            return self._flatten(node, start, end)
        if target is operator.getitem:
            return self._index(node)
        if target in SQUEEZES:
            return self._squeeze(node)
        if target in UNSQUEEZES:
            return self._unsqueeze(node)
        if target in EXTREMA:
            others = [one for one in node.all_input_nodes[1:] if one not in self.numbers]
            return self._sum(node) if others else self._reduce(node)
        if is_layer(target):
            if any(source in self.numbers for source in node.all_input_nodes):
                return self._wall(node, "an option of it, as groups, is computed from sizes")
            return self._wall(node, "its weight is not, as it stands, the parameter of one module")
        if target in SUMS:
            return self._sum(node)
        if target in PRODUCTS or target in QUOTIENTS:
            return self._product(node)
        if target in CONCATENATIONS:
            return self._concatenate(node)
        if target in STACKS:
            return self._stack(node)
        if target in REDUCTIONS:
            return self._reduce(node)
        if target in PERMUTATIONS:
            return self._permute(node)
        if target in RESHAPES:
            return self._reshape(node)
        if target is F.pad:
            mode, value = argument(node, 2, "mode", "constant"), argument(node, 3, "value", None)
            if mode not in ("reflect", "replicate", "circular") and value not in (None, 0):
                return self._wall(node, "pads with a constant")
            amounts = argument(node, 1, "pad", ())
            if not isinstance(amounts, (tuple, list)):
                return self._wall(node, "pads axes that cannot be told")
            return self._pad(node, len(amounts) // 2)
        if target in CLIPS:
            named = (node.kwargs.get(name) for name in ("min", "max", "threshold", "value"))
            return self._clip(node, (*node.args[1:], *named))
        if target in CASTS:
            return self._cast(node)
        if node.kwargs.get("return_indices"):
            return self._wall(node, "returns indices beside the activations")
        return self._visit_operation(node, target)

    def _are_alike(self, values: Sequence[Any]) -> bool:
        """Whether two values are one, or of one shape."""
        one, other = (*values, None, None)[:2]
        shape = self.shapes.get(one) if isinstance(one, fx.Node) else None
        return one is other or (shape is not None and shape == self.shapes.get(other))

    def _clip(self, node: fx.Node, bounds: Iterable[Any]) -> Signal | None:
        """At 0 it is a ReLU, or one upside down."""
        if any(not (bound is None or _is_zero(bound)) for bound in bounds):
            return self._wall(node, "clips at another value than 0")
        return self._only_signal(node)

    def _cast(self, node: fx.Node) -> Signal | None:
        """To another device, or to a dtype that holds all that the parameters' holds."""
        for value in (CASTS[node.target], *node.args[1:], *node.kwargs.values()):
            if isinstance(value, fx.Node) and not _is_attribute(value, "device"):
                return self._wall(node, "casts to a dtype that cannot be told")
            if isinstance(value, torch.dtype):
                own = self._dtypes_of(node)
                wide = all(torch.promote_types(one, value) == value for one in own)
                if not (wide and value.is_floating_point):
                    reason = f"casts to {value}, which holds less than the parameters' dtype"
                    return self._wall(node, reason)
        return self._only_signal(node)

    def _dtypes_of(self, node: fx.Node) -> set[torch.dtype]:
        """Of the weights whose units a node reads; of all parameters where that says nothing."""
        signal = self.signals[node.all_input_nodes[0]]
        roots = () if signal is None else tuple(signal.roots())
        found = {
            self.dtypes[one.weight]
            for units in roots
            for one in units.producers
            if one.weight in self.dtypes
        }
        return found or set(self.dtypes.values())

    def _sum(self, node: fx.Node) -> Signal | None:
        """Sums, differences and maxima of two values: both have to carry the same scales."""
        operands = (argument(node, 0, "input", None), argument(node, 1, "other", None))
        if any(_is_zero(one) for one in operands):
            # As Python's ``sum`` begins.
            return self._only_signal(node)
        if set(operands) != set(node.all_input_nodes):
            return self._wall(node, "adds a constant")
        first = self._join(node, "adds", operands)
        return first and replace(first, dimensions=self._broadcast(node, first, operands[1]))

    def _join(self, node: fx.Node, does: str, values: Sequence[Any]) -> Signal | None:
        """Values that stand beside each other or are summed have to carry the same scales."""
        signals = [one for one in map(self.signals.get, values) if one is not None]
        if len(signals) < len(values):
            return self._wall(node, f"{does} a value that carries no scale")
        if len({(one.axis, one.flattened, one.sizes) for one in signals}) > 1:
            return self._wall(node, f"{does} values whose units stand differently")
        first, *others = signals
        for other in others:
            for mine, its in zip(first.parts, other.parts, strict=True):
                if mine.root().pinned != its.root().pinned:
                    self._wall(node, f"{does} a value that carries no scale")
                mine.join(its)
        return first

    def _product(self, node: fx.Node) -> Signal | None:
        """A product is linear in one operand while the other stays as it is."""
        first, second = argument(node, 0, "input", None), argument(node, 1, "other", None)
        if node.kwargs.get("rounding_mode") is not None:
            return self._wall(node, "rounds")
        operands = [one for one in (first, second) if isinstance(one, fx.Node)]
        scaled = [one for one in operands if self._is_live(one)]
        if len(scaled) > 1 or set(operands) != set(node.all_input_nodes):
            return self._wall(node, "multiplies activations by each other")
        if not scaled:
            return None
        if scaled[0] is not first and (node.target in QUOTIENTS or _in_place(node)):
            return self._wall(node, "divides by activations, or overwrites what is multiplied")
        signal = cast(Signal, self.signals[scaled[0]])
        factor = second if scaled[0] is first else first
        if isinstance(factor, fx.Node) and factor in self.numbers:
            return signal
        if signal.size == 1 and isinstance(factor, fx.Node):
            return self._wall(node, "may repeat its only unit")
        return replace(signal, dimensions=self._broadcast(node, signal, factor))

    def _concatenate(self, node: fx.Node) -> Signal | None:
        tensors = argument(node, 0, "tensors", ())
        axis = argument(node, 1, "dim", 0)
        if not isinstance(tensors, (list, tuple)) or not isinstance(axis, int):
            return self._wall(node, "concatenates in a way that cannot be followed")
        signals = [self.signals[one] for one in tensors]
        places = {(signal.axis, signal.flattened) for signal in signals if signal is not None}
        if len(places) > 1 or True in (flattened for _, flattened in places):
            return self._wall(node, "concatenates values whose units stand differently")
        own = next(iter(places))[0]
        dimensions = self._dimensions_of_all(tensors)
        if dimensions == UNCERTAIN and axis >= 0:
            return self._wall(node, self._ask("the number of axes is not known"))
        # Without a hint features are taken as (N, features); whoever reads them counts them.
        if (axis if axis < 0 else axis - (dimensions or 2)) != own:
            if axis >= 0 and not dimensions:
                return self._wall(node, self._ask("concatenates along an axis that is not known"))
            first = self._join(node, "concatenates", tensors)
            return first and replace(first, dimensions=dimensions)
        parts: list[Units] = []
        for one, signal in zip(tensors, signals, strict=True):
            if signal is not None:
                parts += signal.parts
            elif one in self.shapes and -own <= len(self.shapes[one]):
                parts.append(Units(self.shapes[one][own], pinned=True))
            else:
                return self._wall(node, self._ask("concatenates a value of unknown size"))
        return Signal(tuple(parts), own, dimensions)

    def _stack(self, node: fx.Node) -> Signal | None:
        """Values beside each other along an axis of their own."""
        tensors = argument(node, 0, "tensors", ())
        if not isinstance(tensors, (list, tuple)):
            return self._wall(node, "stacks in a way that cannot be followed")
        dimensions = self._dimensions_of_all(tensors)
        axis = from_the_end(argument(node, 1, "dim", 0), dimensions and dimensions + 1)
        if not dimensions or not axis:
            return self._wall(node, self._ask("adds an axis to axes that cannot be told"))
        first = self._join(node, "stacks", tensors)
        return first and widened(first, dimensions, *axis)

    def _dimensions_of_all(self, values: Sequence[fx.Node]) -> int | None:
        """Of values that all have the same number of axes: the first one known is that of all."""
        signals = [(one, self.signals[one]) for one in values]
        counts = [self._dimensions_of(one, signal) for one, signal in signals if signal is not None]
        return next((one for one in counts if one), UNCERTAIN if UNCERTAIN in counts else None)

    def _reduce(self, node: fx.Node) -> Signal | None:
        """A mean, a sum or an extremum over whole axes other than that of the units."""
        signal = self._only_signal(node)
        if signal is None:
            return None
        keep = argument(node, 2, "keepdim", False)
        if not isinstance(keep, bool):
            return self._wall(node, "reduces in a way that cannot be followed")
        dimensions = self._dimensions_of(node.all_input_nodes[0], signal)
        over = argument(node, 1, "dim", node.kwargs.get("axis"))
        found = from_the_end(over, dimensions)
        if over is not None and not found and not dimensions:
            return self._wall(node, self._ask("the number of axes is not known"))
        if not found or signal.flattened or signal.axis in found:
            return self._wall(node, "reduces over hidden units")
        if node.target in EXTREMA:
            self.extrema.add(node)
        return signal if keep else without(signal, dimensions, found)

    def _extremum(self, node: fx.Node) -> Signal | None:
        """Values or positions of a maximum or minimum over an axis."""
        source, which = cast(fx.Node, node.args[0]), node.args[1]
        if which in ("values", 0, -2):
            return self.signals[source]
        # Rounding may decide between positions.
        return self._wall(node, "reads where the extrema are") if node.users else None

    def _index(self, node: fx.Node) -> Signal | None:
        """Positions, or whole axes, are picked; units have to stay as they are."""
        signal = self._only_signal(node)
        if signal is None:
            return None
        source, entries = node.all_input_nodes[0], node.args[1]
        dimensions = self._dimensions_of(source, signal)
        if not dimensions:
            return self._wall(node, self._ask("indexes activations whose axes cannot be told"))
        entries = entries if isinstance(entries, tuple) else (entries,)
        found = indexed(signal, dimensions, entries)
        return self._wall(node, "indexes the activations") if found is None else found

    def _squeeze(self, node: fx.Node) -> Signal | None:
        """Axes of one position go, where the shape or what made the value tells which they are."""
        signal = self._only_signal(node)
        if signal is None:
            return None
        source = node.all_input_nodes[0]
        dimensions = self._dimensions_of(source, signal)
        found = from_the_end(argument(node, 1, "dim", None), dimensions)
        shape = self.shapes.get(source)
        if shape is None:
            single = (is_single(source, one, dimensions, self.modules) for one in found)
            if not found or not all(single):
                return self._wall(node, self._ask("squeezes an axis of unknown size"))
            return without(signal, dimensions, found)
        # Another batch may have several samples, or one.
        if not found or signal.axis in found or -len(shape) in found:
            return self._wall(
                node,
                "squeezes axes that may be those of units or samples: name them, as by "
                "squeeze((2, 3)), or use flatten(1)",
            )
        return without(signal, len(shape), [axis for axis in found if shape[axis] == 1])

    def _unsqueeze(self, node: fx.Node) -> Signal | None:
        signal = self._only_signal(node)
        if signal is None:
            return None
        dimensions = self._dimensions_of(node.all_input_nodes[0], signal)
        axis = from_the_end(argument(node, 1, "dim", None), dimensions and dimensions + 1)
        if not dimensions or not axis:
            return self._wall(node, self._ask("adds an axis to axes that cannot be told"))
        return widened(signal, dimensions, *axis)

    def _permute(self, node: fx.Node) -> Signal | None:
        signal = self._only_signal(node)
        if signal is None:
            return None
        count = self._dimensions_of(node.all_input_nodes[0], signal)
        reason = "permutes axes in a way that cannot be followed"
        reason = reason if count else self._ask(reason)
        rest: Any = node.args[1:]
        if node.target in (torch.permute, "permute"):
            rest = node.kwargs.get("dims", rest)
            order = from_the_end(
                rest[0] if rest and isinstance(rest[0], (list, tuple)) else rest, count
            )
            if not count or signal.flattened or sorted(order) != list(range(-count, 0)):
                return self._wall(node, reason)
            return replace(signal, axis=order.index(signal.axis) - count)
        pair = from_the_end([*rest, *node.kwargs.values()], count)
        if len(pair) != 2 or signal.flattened:
            return self._wall(node, reason)
        moved = {pair[0]: pair[1], pair[1]: pair[0]}
        axis = moved.get(signal.axis, signal.axis)
        # Whose units are put elsewhere is no (N, features), as which it would be taken.
        dimensions = signal.dimensions if axis == signal.axis else count or UNCERTAIN
        return replace(signal, axis=axis, dimensions=dimensions)

    def _visit_layer(
        self, node: fx.Node, module: nn.Module, name: str, reason: str | None
    ) -> Signal | None:
        signal = self._only_signal(node)
        weight = module._parameters.get("weight")
        self.depths[node] += 1
        kind = type(module)
        # A channel axis stands before the positions; features stand last.
        axis = -1 - CONVOLUTIONS.get(kind, TRANSPOSED.get(kind, 0))
        bias = f"{name}.bias" if module._parameters.get("bias") is not None else None
        groups, transposed = getattr(module, "groups", 1), kind in TRANSPOSED
        inputs = outputs = 0
        if weight is not None and _is_matrix(weight) and _has_entries(weight):
            inputs, outputs = sizes_of(module, weight)
            self._count(node, name, kind.__name__, bias, inputs, groups, transposed)
        if reason is not None or weight is None:
            reason = reason or "it has no weight"
            self._note(node, reason)
            self._wall(node, reason)
            if not outputs:
                return None
            return Signal((Units(outputs, pinned=True),), axis, self._rank(node, signal, axis))
        self._consume(node, signal, name, inputs, axis, groups)
        units = self._units(name, bias, outputs)
        return Signal((units,), axis, self._rank(node, signal, axis))

    def _rank(self, node: fx.Node, signal: Signal | None, axis: int) -> int | None:
        """Number of axes of a layer's output; a convolution's input is taken as a batch."""
        if node in self.shapes:
            return len(self.shapes[node])
        if self.given:
            # What is usual is no guide where an example shows what is, and not here.
            return UNCERTAIN
        if axis < -1:
            return 1 - axis
        if signal is None:
            return UNCERTAIN if node.all_input_nodes[0] in self.long else None
        return signal.dimensions

    def _count(
        self,
        node: fx.Node,
        name: str,
        kind: str,
        bias: str | None,
        inputs: int = 0,
        groups: int = 1,
        transposed: bool = False,
    ) -> None:
        """The energy counts this weight."""
        weight, depth = f"{name}.weight", self.depths[node]
        layer = Layer(name, kind, weight, bias, depth, inputs, groups, transposed)
        self.layers.setdefault(name, layer)

    def _units(self, name: str, bias: str | None, size: int) -> Units:
        producer = Producer(name, f"{name}.weight", bias)
        return self.made.setdefault(name, Units(size, [producer]))

    def _consume(
        self,
        node: fx.Node,
        signal: Signal | None,
        name: str,
        inputs: int,
        axis: int,
        groups: int,
    ) -> None:
        before = self.read.setdefault(name, signal)
        seen, now = ({} if one is None else one.live() for one in (before, signal))
        if seen != now:
            for units in dict.fromkeys([*seen.values(), *now.values()]):
                reason = "reads other units in train mode than in eval mode"
                units.walls.append(Skip(self._where(node), reason))
            return
        if signal is None:
            return
        if signal.axis != axis:
            self._wall(node, "reads the activations along another axis than their units")
        elif not signal.flattened and inputs != signal.size:
            self._wall(node, f"reads {inputs} units where {signal.size} were produced")
        elif inputs % signal.size:
            self._wall(node, f"reads {inputs} values, no multiple of {signal.size} units")
        elif groups > 1 and len(signal.parts) > 1 and signal.live():
            self._wall(node, "a grouped convolution of a concatenation")
        else:
            block, start = inputs // signal.size, 0
            for part in signal.parts:
                consumer = Consumer(name, f"{name}.weight", block, start)
                root = part.root()
                if consumer not in root.consumers:
                    root.consumers.append(consumer)
                start += part.size * block

    def _visit_norm(
        self, node: fx.Node, module: nn.Module, name: str, reason: str | None
    ) -> Signal | None:
        """Normalizations, whose output is ``γ ⊙ n + β`` with an ``n`` that does not change."""
        signal = self._only_signal(node)
        kind = type(module)
        weight = module._parameters.get("weight")
        features = 0 if weight is None or weight.dim() > 1 else weight.numel()
        if self.batchnorm == "ignore" and kind in BATCH_NORMS:
            features = cast(nn.BatchNorm2d, module).num_features
            if signal is None:
                return None
            if reason is not None and reason != EXCLUDED:
                return self._wall(node, reason)
            if features % signal.size:
                return self._wall(node, "normalizes along another axis than the units")
            return signal
        # Its input is a wall that needs no word (the rows in front simply stay); its output is a
        # fresh set of units whose scale the affine parameters carry.
        for source in node.all_input_nodes:
            self._end(source, f"its activations are also normalized by {name}")
        bias = f"{name}.bias" if module._parameters.get("bias") is not None else None
        if weight is None:
            reason = reason or f"{_family(kind)} without affine parameters cannot carry a scale"
        elif weight.dim() > 1:
            reason = reason or "its weights lie along several axes"
        else:
            self._count(node, name, kind.__name__, bias)
        dimensions = self._dimensions(node, kind, signal)
        # Else axis 1 of the batch: features, or channels.
        if kind in CHANNEL_AXES:
            axis: int | None = CHANNEL_AXES[kind]
        else:
            axis = 1 - dimensions if dimensions else None
        if reason is not None:
            self._note(node, reason)
        elif axis is None:
            self._note(node, self._ask("the shape of its input is not known"))
            # In the other mode it may be.
            self._units(name, bias, features).root().pinned = True
        if axis is None or features == 0:
            return None
        if reason is not None:
            return Signal((Units(features, pinned=True),), axis, dimensions)
        return Signal((self._units(name, bias, features),), axis, dimensions)

    def _dimensions(
        self, node: fx.Node, kind: type[nn.Module], signal: Signal | None
    ) -> int | None:
        """Number of axes of a normalization's input, batch included."""
        if node in self.shapes:
            return len(self.shapes[node])
        if (source := node.all_input_nodes[0]) in self.asserted:
            return self.asserted[source]
        if signal is None or kind not in (nn.BatchNorm1d, nn.SyncBatchNorm, BatchNorm):
            return None if signal is None else signal.dimensions
        return 1 - signal.axis if signal.dimensions is None else signal.dimensions

    def _dimensions_of(self, node: fx.Node, signal: Signal) -> int | None:
        """Number of axes of a value that carries units."""
        if node in self.shapes:
            return len(self.shapes[node])
        return self.asserted.get(node, signal.dimensions)

    def _broadcast(self, node: fx.Node, signal: Signal, other: Any) -> int | None:
        """Number of axes of ``node``, which combines a signal with another value."""
        if node in self.shapes or not isinstance(other, fx.Node):
            return self._dimensions_of(node, signal)
        theirs = self.signals[other]
        seen = other in self.shapes
        if seen:
            count: int | None = len(self.shapes[other])
        else:
            count = UNCERTAIN if theirs is None else theirs.dimensions
        if signal.dimensions == count:
            return count
        # A layer's features are taken as (N, features) where nothing is known.
        known = count is not None and (seen or count != UNCERTAIN)
        fits = known and cast(int, count) <= (signal.dimensions or 2)
        return signal.dimensions if fits and theirs is None else UNCERTAIN

    def _flatten(self, node: fx.Node, start: Any, end: Any) -> Signal | None:
        signal = self._only_signal(node)
        if signal is None:
            return None
        dimensions = self._dimensions_of(node.all_input_nodes[0], signal)
        axes = from_the_end([start, end], dimensions) if dimensions else []
        if axes and (signal.axis < axes[0] < axes[1] or axes[0] < axes[1] < signal.axis):
            return without(signal, dimensions, range(axes[0], axes[1]))
        source = self.shapes.get(node.all_input_nodes[0])
        to_the_end = end == -1 or (source is not None and end == len(source) - 1)
        if start == 1 and source is None and isinstance(end, int) and end > 1:
            return self._wall(node, self._ask("flattens up to an axis that may not be the last"))
        if start != 1 or not to_the_end:
            return self._wall(node, "flattens other axes than all but the first")
        return self._merge(node, signal, source)

    def _reshape(self, node: fx.Node) -> Signal | None:
        """``view(x.size(0), -1)`` is a flatten; other shapes need to be seen to be believed."""
        signal = self._only_signal(node)
        if signal is None:
            return None
        source = node.all_input_nodes[0]
        before, after = self.shapes.get(source), self.shapes.get(node)
        sizes = node.args[1:]
        if len(sizes) == 1 and isinstance(sizes[0], (tuple, list)):
            sizes = tuple(sizes[0])
        if any(isinstance(one, torch.dtype) or _is_attribute(one, "dtype") for one in sizes):
            return self._wall(node, "reads the activations' bits as another dtype")
        if before is not None and after is not None:
            if len(after) == 2 and after[0] == before[0]:
                return self._merge(node, signal, before)
        elif len(sizes) == 2 and sizes[1] == -1 and _is_batch_size(sizes[0], source):
            return self._merge(node, signal, None)
        reason = "reshapes in a way not known to keep units apart"
        # Seen to have two axes, of which the first is the batch, it would do.
        may_do = len(sizes) == 2 or (len(sizes) == 1 and isinstance(sizes[0], fx.Node))
        unknown = before is None or after is None
        return self._wall(node, self._ask(reason) if unknown and may_do else reason)

    def _merge(self, node: fx.Node, signal: Signal, source: torch.Size | None) -> Signal | None:
        """All axes but the first become one, each unit's positions side by side."""
        dimensions = signal.dimensions if source is None else len(source)
        if dimensions == UNCERTAIN:
            return self._wall(node, self._ask("the number of axes is not known"))
        if signal.axis == -1:
            # Of an (N, features) input nothing changes; of a longer one units would interleave.
            if dimensions not in (None, 2):
                return self._wall(node, "flattens positions in front of the units")
            return replace(signal, dimensions=2)
        if dimensions is not None and dimensions > 1 - signal.axis:
            return self._wall(node, "flattens positions in front of the units")
        if dimensions is not None and dimensions < 1 - signal.axis:
            return self._wall(node, "flattens an unbatched input")
        return replace(signal, axis=-1, dimensions=2, flattened=True)

    def _only_signal(self, node: fx.Node) -> Signal | None:
        """The signal that ``node`` reads; several at once meet at a wall."""
        sources = [one for one in _operands(node) if one not in self.numbers]
        if len(sources) < 2 or not any(self.signals[source] for source in sources):
            return self.signals[sources[0]] if sources else None
        # Slopes are values too, but carry no units.
        transposed = node.op == "call_module" and type(self.modules[node]) in TRANSPOSED
        with_others = transposed or node.target in _WITH_OTHERS
        is_first = bool(node.args) and node.args[0] is sources[0]
        if with_others and is_first and not any(self.signals[one] for one in sources[1:]):
            return self.signals[sources[0]]
        return self._wall(node, "combines several values")

    def _is_live(self, node: fx.Node) -> bool:
        signal = self.signals[node]
        return signal is not None and bool(signal.live())

    def _end(self, source: fx.Node, reason: str) -> None:
        """A signal that ends without a weight behind it."""
        if (signal := self.signals[source]) is not None:
            for units in signal.roots():
                if not units.pinned and units.producers:
                    units.ends.append(Skip(units.producers[0].module, reason))

    def _wall(self, node: fx.Node, reason: str) -> Signal | None:
        """End every group that ``node`` reads; what comes out carries no units."""
        skip = Skip(self._where(node), reason)
        for source in node.all_input_nodes:
            if (signal := self.signals[source]) is not None:
                for units in signal.roots():
                    if not units.pinned:
                        (units.walls if node in self.above else units.ends).append(skip)
        return None

    def _note(self, node: fx.Node, reason: str) -> None:
        """A wall at the output of ``node``: the units it makes get no scale."""
        self.noted.append(Skip(self._where(node), reason))

    def _ask(self, reason: str) -> str:
        """``reason``, and what would help."""
        return reason + (
            ", and example_inputs do not tell" if self.given else ": pass example_inputs"
        )

    def _where(self, node: fx.Node) -> str:
        if node.op == "call_module":
            return f"{owner_of(node)} ({type(self.modules[node]).__name__})"
        name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")
        # Attribute reads are recorded before fx knows which module's code asks for them.
        stack = node.meta.get("nn_module_stack") or {} if node.target is not getattr else {}
        inside = [path for path in stack if path]
        return f"{name} in {inside[-1]}.forward" if inside else f"{name} in forward"


# The names of arguments that the walk looks at.
_ARGUMENTS: tuple[tuple[Collection[Any], frozenset[str]], ...] = (
    ((torch.flatten, "flatten"), frozenset({"input", "start_dim", "end_dim"})),
    (SUMS, frozenset({"input", "other", "alpha"})),
    ((*PRODUCTS, *QUOTIENTS), frozenset({"input", "other", "rounding_mode"})),
    ((*CONCATENATIONS, *STACKS), frozenset({"tensors", "dim"})),
    (REDUCTIONS, frozenset({"input", "dim", "axis", "keepdim"})),
    (EXTREMA, frozenset({"input", "dim", "axis", "keepdim", "other"})),
    ((*SQUEEZES, *UNSQUEEZES), frozenset({"input", "dim"})),
    (PERMUTATIONS, frozenset({"input", "dims", "dim0", "dim1", "axis0", "axis1"})),
    (RESHAPES, frozenset({"input"})),
    ((F.pad,), frozenset({"input", "pad", "mode", "value"})),
)


def _operands(node: fx.Node) -> list[fx.Node]:
    """The values that ``node`` reads, each as often as it does."""
    found: list[fx.Node] = []
    map_arg((node.args, node.kwargs), found.append)
    return found


# After these a value may have no positions any more, beside reductions and reshapes.
_SHORTEN = {
    *(torch.flatten, "flatten", torch.squeeze, "squeeze", operator.getitem, torch.einsum),
    *(torch.select, "select", "max", "min", torch.max, torch.min),
    *(torch.logsumexp, "logsumexp", torch.norm, "norm", torch.std, "std"),
}
# They take the shape of another value, and nothing else of it.
_LIKE = {"expand_as", "reshape_as", "view_as"}
_WITH_OTHERS = {*RESHAPES, F.prelu, torch.prelu, F.interpolate}


def _with_a_way_out(free: Sequence[Units]) -> list[Units]:
    """Units that reach a weight whose outputs are not rescaled.

    Those that only feed each other have no minimum, and reach no output either.
    """
    makers = {producer.weight: units for units in free for producer in units.producers}
    found: dict[Units, None] = {}
    before = -1
    while len(found) > before:
        before = len(found)
        # Mostly in the order of the network, of which the end is known first.
        for units in reversed(free):
            behind = (makers.get(consumer.weight) for consumer in units.consumers)
            if any(one is None or one in found for one in behind):
                found[units] = None
    return [units for units in free if units in found]


def _family(kind: type[nn.Module]) -> str:
    return "BatchNorm" if kind in BATCH_NORMS else kind.__name__


def _is_matrix(parameter: nn.Parameter) -> bool:
    return is_lazy(parameter) or parameter.dim() > 1


def _asserted(node: fx.Node) -> dict[fx.Node, int] | None:
    """The number of axes that ``torch._assert(x.dim() == n)`` leaves a value."""
    if node.target is not torch._assert or not isinstance(node.args[0], fx.Node):
        return None
    equation = node.args[0]
    if equation.target is not operator.eq:
        return None
    counted, count = equation.args
    if not isinstance(counted, fx.Node) or not isinstance(count, int):
        return None
    if counted.target == "dim" or _is_attribute(counted, "ndim"):
        return {counted.all_input_nodes[0]: count}
    return None


def _is_attribute(value: Any, name: str) -> bool:
    """Whether it is what some tensor's attribute ``name`` says."""
    is_read = isinstance(value, fx.Node) and value.target is getattr
    return is_read and bool(value.args[1] == name)


def _is_zero(value: Any) -> bool:
    return isinstance(value, (int, float)) and value == 0


def _has_entries(weight: nn.Parameter) -> bool:
    """Whether rows and columns of it can be told."""
    return not is_lazy(weight) and weight.layout is torch.strided


def _in_place(node: fx.Node) -> bool:
    return node.target in (operator.imul, operator.itruediv) or str(node.target).endswith("_")


def _is_batch_size(size: Any, tensor: fx.Node) -> bool:
    """Whether ``size`` is ``tensor.size(0)`` or ``tensor.shape[0]``."""
    if not isinstance(size, fx.Node):
        return False
    if size.target == "size":
        return size.args[0] is tensor and argument(size, 1, "dim", None) == 0
    if size.target is operator.getitem and size.args[1] == 0:
        shape = size.args[0]
        if isinstance(shape, fx.Node) and shape.args[0] is tensor:
            return shape.target == "size" or shape.args[1:] == ("shape",)
    return False
