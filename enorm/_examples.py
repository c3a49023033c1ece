"""Example inputs: which arguments they are, and what their sizes make of every value."""

from __future__ import annotations

import copy
import inspect
import math
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, fx, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from enorm._calls import is_scripted
from enorm._memory import is_lazy
from enorm._sharded import own_hooks
from enorm._unsupported import UnsupportedModel

# By the argument's name; of any number of arguments ``inputs`` the first is ``inputs_0``.
Inputs = Mapping[str, Tensor]


@dataclass(frozen=True)
class Arguments:
    """What a model is called with: tensors in order, or by name."""

    in_order: tuple[Any, ...]
    by_name: Mapping[str, Any]
    called: str = "inputs"

    @classmethod
    def of(cls, inputs: Any, called: str = "inputs") -> Arguments:
        """Of a tensor, a tuple of tensors, or tensors by name.

        Raises:
            TypeError: these, ``called`` so where they were given, are no tensors.
        """
        if isinstance(inputs, Mapping):
            found = cls((), dict(inputs), called)
        else:
            found = cls(inputs if isinstance(inputs, tuple) else (inputs,), {}, called)
        for value in (*found.in_order, *found.by_name.values()):
            if not isinstance(value, Tensor):
                raise TypeError(
                    f"{called} must be a tensor, a tuple of tensors or tensors by name, got "
                    f"{type(value).__name__}"
                )
        return found

    def named(self, model: nn.Module) -> dict[str, Tensor]:
        """Each with the argument's name, and tensors that arguments have as defaults.

        Raises:
            UnsupportedModel: ``forward`` takes others, fewer or more.
        """
        if self.in_order:
            given = dict(zip(_names(model, self), self.in_order, strict=True))
        else:
            _check_names(model, self)
            given = dict(self.by_name)
        parameters = inspect.signature(model.forward).parameters.values()
        defaults = {one.name: one.default for one in parameters if isinstance(one.default, Tensor)}
        return {**defaults, **given}

    def call(self, model: nn.Module) -> Any:
        """What the model returns for copies of these, for its code may write into them."""
        in_order = [value.clone() for value in self.in_order]
        return model(*in_order, **{name: value.clone() for name, value in self.by_name.items()})


def inputs_of(model: nn.Module, example_inputs: Any) -> Inputs:
    """Example inputs on the meta device, floating ones in the model's own dtype.

    Args:
        model: the network.
        example_inputs: a tensor, a tuple of tensors in the order of the arguments, or tensors by
            the arguments' names, or :class:`Arguments` of these; None for none.

    Raises:
        UnsupportedModel: ``forward`` takes others, fewer or more.
        TypeError: they are no tensors.
    """
    if example_inputs is None:
        return {}
    if not isinstance(example_inputs, Arguments):
        example_inputs = Arguments.of(example_inputs, "example_inputs")
    given = example_inputs.named(model)
    dtypes = [value.dtype for value in model.parameters() if value.is_floating_point()]
    found = {}
    for name, value in given.items():
        dtype = dtypes[0] if dtypes and value.is_floating_point() else value.dtype
        found[name] = torch.empty(value.shape, dtype=dtype, device="meta")
    return found


def _names(model: nn.Module, inputs: Arguments) -> list[str]:
    """Of the first arguments; UnsupportedModel if ``forward`` takes more than these, or fewer."""
    given = len(inputs.in_order)
    parameters = inspect.signature(model.forward).parameters.values()
    required = [one.name for one in parameters if one.default is one.empty]
    by_name = [one.name for one in parameters if one.kind is one.KEYWORD_ONLY]
    others = [one.name for one in parameters if one.kind is one.VAR_POSITIONAL]
    positional = [one.name for one in parameters if one.kind < one.VAR_POSITIONAL]
    if missing := [one for one in by_name if one in required]:
        raise UnsupportedModel(
            f"forward takes {missing[0]!r} by its name only: give {inputs.called} by name, "
            f"{{{missing[0]!r}: ..., ...}}"
        )
    least = sum(one in required for one in positional)
    most = math.inf if others else len(positional)
    if not least <= given <= most:
        raise UnsupportedModel(
            f"{inputs.called} has {given} tensor{'s' * (given != 1)}, and forward takes "
            f"{', '.join(positional) or 'none'}"
        )
    rest = [f"{others[0]}_{number}" for number in range(given - len(positional))] if others else []
    return [*positional[:given], *rest]


def _check_names(model: nn.Module, inputs: Arguments) -> None:
    """Raise UnsupportedModel if ``forward`` has no arguments of these names, or needs others."""
    parameters = inspect.signature(model.forward).parameters.values()
    plain = [one for one in parameters if one.kind not in (one.VAR_POSITIONAL, one.VAR_KEYWORD)]
    known = [one.name for one in plain if one.kind is not one.POSITIONAL_ONLY]
    takes = f"and forward takes {', '.join(one.name for one in plain) or 'none'}"
    any_name = any(one.kind is one.VAR_KEYWORD for one in parameters)
    for name in inputs.by_name:
        if not (any_name or name in known):
            raise UnsupportedModel(f"{inputs.called} has {name!r}, {takes}")
    for one in plain:
        if one.default is one.empty and one.name not in inputs.by_name:
            raise UnsupportedModel(f"{inputs.called} lacks {one.name!r}, {takes}")


def shapes_of(graph_module: fx.GraphModule, inputs: Inputs) -> Mapping[fx.Node, torch.Size]:
    """Shapes of all intermediate tensors, found on the meta device: nothing is computed."""
    try:
        finder = ShapeFinder(graph_module, graph_module.graph, inputs)
        with OnMeta(), warnings.catch_warnings():
            # What the code is warned of, it is when it runs.
            warnings.simplefilter("ignore")
            for node in graph_module.graph.nodes:
                finder.find(node)
    except Exception as error:
        raise misfit(inputs, error) from error
    return finder.shapes


def misfit(inputs: Inputs, error: Exception) -> UnsupportedModel:
    """What the model says to inputs of these sizes."""
    sizes = ", ".join(str(tuple(value.shape)) for value in inputs.values())
    cause = error.__cause__ or error
    reason = next(iter(str(cause).splitlines()), type(cause).__name__)
    if "more than 1 value per channel" in reason:
        reason += "; give a batch of two or more"
    return UnsupportedModel(f"example_inputs of shape {sizes} do not fit the model: {reason}")


class OnMeta(TorchDispatchMode):
    """Every tensor stays on the meta device, whatever device the code names."""

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        if any(argument.name == "device" for argument in function._schema.arguments):
            kwargs["device"] = torch.device("meta")
        return function(*args, **kwargs)


class ShapeFinder(fx.Interpreter):
    """Runs a graph on twins of its modules whose tensors have no values.

    What depends on values has no shape that could be known, nor has what depends on that.
    """

    def __init__(self, root: nn.Module, graph: fx.Graph, inputs: Inputs) -> None:
        super().__init__(root, graph=graph)
        self.extra_traceback = False
        self._inputs = inputs
        self._twins: dict[int, Any] = {}
        self.shapes: dict[fx.Node, torch.Size] = {}
        self.unknown: set[fx.Node] = set()
        self._devices: set[fx.Node] = set()

    def find(self, node: fx.Node) -> Any:
        """Its value, as far as sizes tell; None if they do not."""
        # All code in front of it has run by then: what works in place may change a shape.
        missing = []
        for one in reversed(self.graph.nodes):
            if one in self.env:
                break
            missing.append(one)
        for one in reversed(missing):
            self.env[one] = self.run_node(one)
        return None if node in self._devices else self.env[node]

    def run_node(self, n: fx.Node) -> Any:
        unseen = any(source in self.unknown for source in n.all_input_nodes)
        if unseen or self._is_opaque(n) or (n.op == "placeholder" and n.target not in self._inputs):
            return self._unknown(n)
        try:
            value = super().run_node(n)
        except _NoTwinError:
            return self._unknown(n)
        except Exception as error:
            # Else the sizes do not fit.
            if not isinstance(error, NotImplementedError) and "meta" not in str(error):
                raise
            return self._unknown(n)
        if isinstance(value, Tensor):
            self.shapes[n] = value.shape
        elif isinstance(value, torch.device):
            # It may be used, but nothing may be made of it: it is the twins' own.
            self._devices.add(n)
        elif not _has_tensors(value) and self._is_twins_own(n):
            return self._unknown(n)
        return value

    def _is_twins_own(self, n: fx.Node) -> bool:
        """Whether what it says, such as strides, need not hold for the real tensors."""
        sources = n.all_input_nodes
        if any(source in self._devices for source in sources):
            return True
        return not _tells(n) and any(_has_tensors(self.env[source]) for source in sources)

    def _unknown(self, n: fx.Node) -> None:
        self.unknown.add(n)
        if str(n.target).endswith("_") and n.args and isinstance(n.args[0], fx.Node):
            # Nor is it known what that has become.
            self.unknown.add(n.args[0])

    def placeholder(self, target: Any, args: Any, kwargs: Any) -> Any:
        # Code may give it another shape.
        return self._inputs[target].detach()

    def fetch_attr(self, target: str) -> Any:
        found = super().fetch_attr(target)
        if isinstance(found, fx.Proxy):
            # The code has put a value there.
            raise _NoTwinError
        if id(found) not in self._twins:
            parts = found.modules() if isinstance(found, nn.Module) else ()
            held = [*tree_leaves([one.__dict__ for one in parts]), found]
            for tensor in held:
                if isinstance(tensor, Tensor) and id(tensor) not in self._twins:
                    self._twins[id(tensor)] = _on_meta(tensor)
        try:
            return copy.deepcopy(found, self._twins)
        except TypeError as error:
            # It holds a lock, for instance.
            raise _NoTwinError from error

    def call_module(self, target: Any, args: Any, kwargs: Any) -> Any:
        # Among several processes it runs on an accelerator only.
        module = self.fetch_attr(target)
        if type(module) is nn.SyncBatchNorm:
            return args[0]
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.momentum is None:
            # Else it would ask how many batches there have been, which no twin knows.
            module.momentum = 0.0
        return module(*args, **kwargs)

    def call_method(self, target: Any, args: Any, kwargs: Any) -> Any:
        # Everything stays on the meta device, and a machine without a GPU can plan for one.
        return args[0] if target == "cuda" else super().call_method(target, args, kwargs)

    def _is_opaque(self, n: fx.Node) -> bool:
        """Whether its code cannot, or must not, run without values: hooks may keep what they see.

        Those of lazy modules are torch's own, and give them their shapes.
        """
        if n.op != "call_module":
            return False
        module = super().fetch_attr(str(n.target))
        lazy = isinstance(module, nn.modules.lazy.LazyModuleMixin)
        return is_scripted(module) or (own_hooks(module) and not lazy)


class _NoTwinError(Exception):
    """Of this there is no copy without values."""


# What a tensor without values says of itself as the real one would.
_TELLING = frozenset(
    {
        *("shape", "ndim", "dtype", "itemsize", "size", "dim", "ndimension", "numel", "nelement"),
        *("element_size", "is_floating_point", "is_complex"),
    }
)
_TELLING_FUNCTIONS = frozenset({torch.numel, torch.is_floating_point, torch.is_complex})


def _tells(n: fx.Node) -> bool:
    if n.target is getattr:
        return n.args[1] in _TELLING
    return n.target in (_TELLING if n.op == "call_method" else _TELLING_FUNCTIONS)


def _has_tensors(value: Any) -> bool:
    return any(isinstance(one, Tensor) for one in tree_leaves(value))


def _on_meta(tensor: Tensor) -> Tensor:
    """One like it, without values."""
    if is_lazy(tensor):
        kind: Any = type(tensor)
        return cast(Tensor, kind(requires_grad=False, device="meta", dtype=tensor.dtype))
    twin = torch.empty_like(tensor, device="meta", requires_grad=False)
    return nn.Parameter(twin, False) if isinstance(tensor, nn.Parameter) else twin
