"""The forward code as ``torch.fx`` graphs, recorded without a trace left in the model."""

from __future__ import annotations

import contextlib
import copy
import functools
import gc
import inspect
import math
import operator
import warnings
import weakref
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast
from unittest import mock

import torch
from torch import Tensor, fx, nn
from torch.nn.modules.module import _global_forward_hooks, _global_forward_pre_hooks
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from enorm._calls import is_scripted, unseen_call
from enorm._functional import DESCRIBING, attribute, name_modules, reads_values
from enorm._homogeneous import registered_functions, registered_modules
from enorm._memory import is_lazy, storage
from enorm._sharded import own_hooks, why_not
from enorm._untouched import Randomness, randomness_of, untouched


class UnsupportedModel(ValueError):  # noqa: N818 - the name is part of the public contract
    """The model, or with ``strict=True`` a part of it, cannot be rescaled; the message says why."""


# Where the forward code cannot be followed, its author still can.
_ESCAPE = (
    "Where layers follow each other there, say so: enorm.plan_from_layers(model, [names of layers])"
)


@dataclass(frozen=True)
class Recording:
    """One way through the forward code.

    Attributes:
        graph_module: what ``torch.fx`` recorded; modules in place of layers' functions.
        shapes: of intermediate tensors, where example inputs made them known.
        read: storages of tensors that the code computed with itself, in the graph or around it.
        kept: values that the code still holds when it is done, as in an attribute.
        asked: lines of code that went on by the sizes of the example inputs.
    """

    graph_module: fx.GraphModule
    shapes: Mapping[fx.Node, torch.Size]
    read: frozenset[int]
    kept: frozenset[fx.Node]
    asked: tuple[str, ...]

    def calls(self) -> dict[fx.Node, nn.Module]:
        """What each node calls that calls a module: the model's own, or what stands in for it."""
        return {
            node: self.graph_module.get_submodule(str(node.target))
            for node in self.graph_module.graph.nodes
            if node.op == "call_module"
        }


def record(model: nn.Module, example_inputs: Any = None) -> tuple[Recording, Recording]:
    """The forward code in eval mode and in train mode; the model's own modes do not matter.

    Arguments that have a default keep it, unless ``example_inputs`` reaches that far.

    Raises:
        UnsupportedModel: ``torch.fx`` cannot trace it, or the example inputs do not fit.
        TypeError: the example inputs are no tensors.
    """
    check_kind(model)
    inputs = _inputs(model, example_inputs)
    recordings = []
    for training in (False, True):
        with untouched(model) as randomness:
            set_mode(model, training)
            reads = _Reads()
            with reads:
                graph_module, kept, read, asked = _recorded(model, inputs, randomness)
            reads.storages |= read
            replaced = name_modules(graph_module)
            kept = frozenset(replaced.get(node, node) for node in kept)
            shapes = _shapes(graph_module, inputs) if inputs else {}
        for node in graph_module.graph.nodes:
            if reads_values(node) and isinstance(value := attribute(graph_module, node), Tensor):
                reads.storages.add(storage(value))
        recordings.append(Recording(graph_module, shapes, frozenset(reads.storages), kept, asked))
    for recording in recordings:
        # A value kept by one adds to its graph what the other does with it.
        _check_kept(model, recording.graph_module.graph)
    return recordings[0], recordings[1]


def symbolic_trace(model: nn.Module, example_inputs: Any = None) -> fx.GraphModule:
    """``torch.fx.symbolic_trace``, its failures told with the line of the model's own code.

    Args:
        model: the network, in the mode that is to be traced.
        example_inputs: as of :func:`record`.

    Raises:
        UnsupportedModel: it cannot be traced.
    """
    check_kind(model)
    inputs = _inputs(model, example_inputs)
    with untouched(model) as randomness:
        graph_module, _, _, _ = _recorded(model, inputs, randomness)
    name_modules(graph_module)
    return graph_module


def _recorded(
    model: nn.Module, inputs: tuple[Tensor, ...], randomness: Randomness
) -> tuple[fx.GraphModule, frozenset[fx.Node], frozenset[int], tuple[str, ...]]:
    """The graph, nodes whose values the code has put somewhere, and storages read unseen.

    And the lines of code that asked for sizes.
    """
    tracer = _Tracer(inputs, autowrap_functions=registered_functions())
    try:
        with warnings.catch_warnings():
            # What the code is warned of, it is when it runs.
            warnings.simplefilter("ignore")
            for module in model.modules():
                # Hooks of the old kind look for a tensor in the output until they find one.
                if module._is_full_backward_hook is False:
                    module._backward_hooks = OrderedDict()
            graph = tracer.trace(model)
            _check_drawn(model, randomness.moved())
            for node in graph.nodes:
                # Code that fx generates would wrap the function again, by a name that may not be.
                node.meta.pop("is_wrapped", None)
            made = fx.GraphModule(tracer.root, graph, type(model).__name__)
            return made, tracer.kept(), frozenset(tracer.read), tuple(tracer.asked)
    except UnsupportedModel:
        raise
    except Exception as error:
        # Whatever the model's own forward code raises under tracing ends here, with its line.
        last = error.__traceback__
        place = ""
        while last is not None:
            code = last.tb_frame.f_code
            if code.co_name == "forward" and "torch" not in code.co_filename.split("/"):
                place = f" at {code.co_filename}:{last.tb_lineno}"
            last = last.tb_next
        hint = "If it asks for sizes there, give enorm.trace example_inputs. " * tracer.lacking
        raise UnsupportedModel(
            f"{type(model).__name__} cannot be traced{place}: {type(error).__name__}: {error}. "
            f"{hint}{_ESCAPE}"
        ) from error


def _check_drawn(model: nn.Module, drawn: Sequence[str]) -> None:
    """Raise UnsupportedModel if another call may go another way than the one recorded."""
    if drawn:
        mode = "train" if model.training else "eval"
        raise UnsupportedModel(
            f"{type(model).__name__} cannot be traced: in {mode} mode its forward code draws from "
            f"{' and '.join(drawn)}, so that another call may go another way than the one "
            f"recorded. {_ESCAPE}"
        )


def _check_kept(model: nn.Module, graph: fx.Graph) -> None:
    """Raise UnsupportedModel if a value of another call takes part in this one."""
    own = set(graph.nodes)
    if any(source not in own for node in graph.nodes for source in node.all_input_nodes):
        raise UnsupportedModel(
            f"{type(model).__name__} cannot be traced: its forward code goes on with values that "
            f"it has kept from another call. {_ESCAPE}"
        )


def check_module(model: Any) -> None:
    """Raise TypeError if it is no module."""
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, got {type(model).__name__}")


def check_kind(model: Any) -> None:
    """Raise for what is no model, wraps one, has taken its weights apart, or hides its code.

    Raises:
        TypeError: it is no module.
        UnsupportedModel: it is one that tracing cannot see through.
    """
    check_module(model)
    if isinstance(model, (nn.DataParallel, nn.parallel.DistributedDataParallel)):
        raise UnsupportedModel(f"{type(model).__name__} wraps a model: pass model.module")
    if is_scripted(model):
        raise UnsupportedModel(
            "this is a model that torch.jit has compiled: pass the one it was made from"
        )
    if (reason := why_not(model)) is not None:
        raise UnsupportedModel(f"{type(model).__name__} cannot be traced: {reason}")
    if hasattr(model, "_orig_mod"):
        raise UnsupportedModel("this is a compiled model: pass the model that was compiled")
    if own_hooks(model):
        raise UnsupportedModel(
            f"{type(model).__name__} has forward hooks itself, which tracing does not see: remove "
            "them, trace, and register them again"
        )
    if _global_forward_hooks or _global_forward_pre_hooks:
        raise UnsupportedModel(
            "forward hooks of all modules are registered, which tracing does not see: remove "
            "them, trace, and register them again"
        )
    if (reason := unseen_call(model)) is not None:
        raise UnsupportedModel(
            f"{type(model).__name__} cannot be traced: {reason}, and tracing sees only the forward "
            f"of the class: put that code there. {_ESCAPE}"
        )


class _Proxy(fx.Proxy):
    """Knows ``x *= y`` from ``x = x * y``: whatever else is ``x`` changes too.

    ``x.data = y`` and ``x[i] = y`` leave a node as well. It is the number that the sizes of example
    inputs make of it, where code asks for one.
    """

    def __getattr__(self, name: str) -> fx.proxy.Attribute:
        return _Attribute(self, name)

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "data":
            self.tracer.create_proxy("call_function", setattr, (self, name, value), {})
        else:
            super().__setattr__(name, value)

    def __setitem__(self, place: Any, value: Any) -> None:
        self.tracer.create_proxy("call_function", operator.setitem, (self, place, value), {})

    def __len__(self) -> int:
        found = self._found()
        return super().__len__() if found is None else len(found)

    def _found(self) -> Any:
        return cast(_Tracer, self.tracer).found(self)

    def _number(self) -> Any:
        """The number that a size is, or what is computed from sizes.

        Raises:
            TypeError: without example inputs, or where it depends on values.
        """
        found = self._found()
        if _is_value(found):
            raise TypeError("a symbolically traced value is no number")
        return found

    def __index__(self) -> int:
        return operator.index(self._number())

    def __int__(self) -> int:
        return int(self._number())

    def __float__(self) -> float:
        return float(self._number())


class _Attribute(fx.proxy.Attribute, _Proxy):
    """As ``x.shape``, which is a number or a tuple as well."""


def _in_place(name: str) -> Any:
    target = getattr(operator, name)

    def method(self: fx.Proxy, other: Any) -> fx.Proxy:
        return self.tracer.create_proxy("call_function", target, (self, other), {})

    return method


for _name in ("iadd", "isub", "imul", "itruediv", "ifloordiv", "imod", "ipow", "imatmul"):
    setattr(_Proxy, f"__{_name}__", _in_place(_name))


class _Tracer(fx.Tracer):
    """Does not look into what users vouch for, and knows which values are still held."""

    def __init__(self, inputs: tuple[Tensor, ...] = (), **settings: Any) -> None:
        super().__init__(**settings)
        self._inputs = inputs
        self._finder: _ShapeFinder | None = None
        self._finding = False
        # Lines of code that asked for the inputs' sizes, and whether there were none.
        self.asked: dict[str, None] = {}
        self.lacking = False
        self._returning = False
        self._objects: list[Any] = []
        self._proxies: list[weakref.ref[fx.Proxy]] = []
        self._parameters: dict[str, nn.Parameter] = {}
        # Storages of what opaque modules read, which leaves no node.
        self.read: set[int] = set()

    def trace(self, root: Any, concrete_args: dict[str, Any] | None = None) -> fx.Graph:
        self._parameters = dict(root.named_parameters(remove_duplicate=False))
        with contextlib.ExitStack() as stack:
            for kind, count in _BATCH_NORM_AXES.items():
                recorded = _recorded_check(kind, count)
                stack.enter_context(mock.patch.object(kind, "_check_input_dim", recorded))
            for owner, names in _SIZED.items():
                for name in names:
                    sized = self._recorded_by_size(owner, name)
                    stack.enter_context(mock.patch.object(owner, name, sized))
            return super().trace(root, concrete_args)

    def _recorded_by_size(self, owner: Any, name: str) -> Any:
        """The function, for sizes and devices that are values of the graph a node of it."""
        function = getattr(owner, name)

        @functools.wraps(function)
        def wrapped(*args: Any, **kwargs: Any) -> Any:
            if any(isinstance(one, fx.Proxy) for one in tree_leaves((args, kwargs))):
                if owner is Tensor:
                    return self.create_proxy("call_method", name, args, kwargs)
                return self.create_proxy("call_function", function, args, kwargs)
            return function(*args, **kwargs)

        return wrapped

    def create_args_for_root(
        self, root_fn: Any, is_module: bool, concrete_args: Any = None
    ) -> tuple[Any, list[Any]]:
        """What the forward code is called with: arguments keep defaults that are no tensors."""
        parameters = list(inspect.signature(cast(Any, self.root).forward).parameters.values())
        if not self._inputs and any(one.kind is one.VAR_POSITIONAL for one in parameters):
            # Then there is one value for all of them, whose parts are counted by nobody.
            return super().create_args_for_root(root_fn, is_module)
        positional: list[Any] = [self.root]
        named: dict[str, fx.Proxy] = {}
        by_name = False
        for place, one in enumerate(parameters):
            is_input = place < len(self._inputs) or isinstance(one.default, Tensor)
            if one.kind is one.VAR_POSITIONAL:
                rest = [f"{one.name}_{number}" for number in range(len(self._inputs) - place)]
                positional += [self.create_proxy("placeholder", name, (), {}) for name in rest]
            elif one.kind is one.VAR_KEYWORD or not (is_input or one.default is one.empty):
                by_name = True
            elif by_name or one.kind is one.KEYWORD_ONLY:
                named[one.name] = self.create_proxy("placeholder", one.name, (), {})
            else:
                positional.append(self.create_proxy("placeholder", one.name, (), {}))

        def run(*args: Any) -> Any:
            returned = root_fn(*args, **named)
            self._returning = True
            return returned

        return run, positional

    def create_arg(self, a: Any) -> Any:
        try:
            return super().create_arg(a)
        except NotImplementedError:
            if not self._returning:
                raise
            # An object of the model's own is returned: what is in it counts as kept.
            self._objects.append(a)
            return None

    def create_node(self, kind: str, target: Any, *args: Any, **kwargs: Any) -> fx.Node:
        if kind in ("get_attr", "call_module"):
            self._check_own(str(target))
        return super().create_node(kind, target, *args, **kwargs)

    def _check_own(self, target: str) -> None:
        """Raise if the forward code has put other parameters where the model has its own.

        As ``torch.func.functional_call`` does: what they are called now says nothing.
        """
        holder, _, key = target.rpartition(".")
        owner = self.root.get_submodule(holder)
        found: Any = owner._modules.get(key)
        inside = (
            {target: owner._parameters.get(key)}
            if found is None
            else {f"{target}.{name}": one for name, one in found.named_parameters()}
        )
        for name, parameter in inside.items():
            if self._parameters.get(name) is not parameter:
                raise UnsupportedModel(
                    f"{type(self.root).__name__} cannot be traced: its forward code puts another "
                    f"parameter in the place of {name!r}. {_ESCAPE}"
                )

    def proxy(self, node: fx.Node) -> fx.Proxy:
        made = _Proxy(node, self)
        self._proxies.append(weakref.ref(made))
        return made

    def kept(self) -> frozenset[fx.Node]:
        """Nodes whose proxies somebody still holds: an attribute, a closure, a global name."""
        if any(one() is not None for one in self._proxies):
            gc.collect()
        alive = [one() for one in self._proxies]
        return frozenset(one.node for one in alive if one is not None)

    def to_bool(self, obj: fx.Proxy) -> bool:
        found = self.found(obj)
        return super().to_bool(obj) if _is_value(found) else bool(found)

    def iter(self, obj: fx.Proxy) -> Any:
        found = self.found(obj)
        if found is None:
            return super().iter(obj)
        return iter([cast(Any, obj)[place] for place in range(len(found))])

    def found(self, obj: fx.Proxy) -> Any:
        """What the example inputs' sizes make of it; a tensor has a shape only.

        None without example inputs, and for what depends on values.
        """
        if not self._inputs:
            self.lacking = True
            return None
        self._finding = True
        # What is found here is no part of the code that is recorded.
        try:
            with torch._C.DisableTorchFunction(), _OnMeta():
                if self._finder is None:
                    self._finder = _ShapeFinder(self.root, self.graph, self._inputs)
                found = self._finder.find(obj.node)
        except Exception as error:
            raise _misfit(self._inputs, error) from error
        finally:
            self._finding = False
        self.asked[_line()] = None
        return found

    def getattr(self, attr: str, attr_val: Any, parameter_proxy_cache: Any) -> Any:
        if self._finding:
            return attr_val
        return super().getattr(attr, attr_val, parameter_proxy_cache)

    def call_module(self, m: nn.Module, forward: Any, args: Any, kwargs: Any) -> Any:
        if self._finding:
            return forward(*args, **kwargs)
        if own_hooks(m) and not is_scripted(m) and not super().is_leaf_module(m, ""):
            self._look_inside(m, args, kwargs)
        return super().call_module(m, forward, args, kwargs)

    def _look_inside(self, m: nn.Module, args: Any, kwargs: Any) -> None:
        """Note what the forward code of an opaque module reads, of the whole model's tensors."""
        before, randomness = len(self.graph.nodes), randomness_of(self.root)
        # What cannot be recorded has been no matter so far: it is opaque.
        with contextlib.suppress(Exception):
            m.forward(*args, **kwargs)
        # Whichever way it goes, nothing of it is followed.
        randomness.restore()
        for node in reversed(list(self.graph.nodes)[before:]):
            if node.op == "call_module":
                parameters = self.root.get_submodule(str(node.target)).parameters()
                self.read |= {storage(one) for one in parameters if not is_lazy(one)}
            # Tracing uses what reads a parameter or a buffer again.
            if node.op != "get_attr":
                self.graph.erase_node(node)

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        # What hooks make of a value is not in the forward code, nor is scripted code readable.
        opaque = type(m) in registered_modules() or own_hooks(m) or is_scripted(m)
        return opaque or super().is_leaf_module(m, module_qualified_name)


# How many axes a BatchNorm's own code asks for; of BatchNorm1d two or three.
_BATCH_NORM_AXES = {nn.BatchNorm1d: None, nn.BatchNorm2d: 4, nn.BatchNorm3d: 5}


# What takes sizes and devices, and a tensor that is no value of the graph or none: torch does not
# ask whether any of them is.
_SIZED: dict[Any, tuple[str, ...]] = {
    torch: (
        *("zeros", "ones", "full", "empty", "eye", "arange", "linspace", "tensor", "as_tensor"),
        *("rand", "randn", "randint", "randperm"),
    ),
    Tensor: (
        *("expand", "view", "reshape", "unflatten", "repeat", "tile", "narrow", "to"),
        *("new_zeros", "new_ones", "new_full", "new_empty"),
    ),
}


def _recorded_check(kind: type[nn.Module], count: int | None) -> Any:
    """``_check_input_dim`` of a BatchNorm, for values of the graph an assertion in it."""
    check = vars(kind)["_check_input_dim"]

    def method(self: nn.Module, input: Any) -> None:
        if not isinstance(input, fx.Proxy):
            check(self, input)
        elif count is not None:
            axes: Any = input.dim()
            torch._assert(axes == count, f"expected {count} axes")

    return method


class _Reads(TorchFunctionMode):
    """Collects the storages of real tensors that functions are called with while tracing.

    The graph's own tensors are proxies then, so a real one is a parameter or a buffer that the
    code reached around ``torch.fx``, or a constant.
    """

    _HARMLESS = frozenset(getattr(Tensor, name).__get__ for name in DESCRIBING)

    def __init__(self) -> None:
        super().__init__()
        self.storages: set[int] = set()

    def __torch_function__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        if function not in self._HARMLESS:
            with torch._C.DisableTorchFunction():
                for value in tree_leaves((args, kwargs or {})):
                    if isinstance(value, Tensor):
                        self.storages.add(storage(value))
        return function(*args, **(kwargs or {}))


def _inputs(model: nn.Module, example_inputs: Any) -> tuple[Tensor, ...]:
    """Example inputs on the meta device, floating ones in the model's own dtype."""
    if example_inputs is None:
        return ()
    inputs = example_inputs if isinstance(example_inputs, tuple) else (example_inputs,)
    _check_count(model, len(inputs))
    dtypes = [value.dtype for value in model.parameters() if value.is_floating_point()]
    found = []
    for value in inputs:
        if not isinstance(value, Tensor):
            raise TypeError(
                f"example_inputs must be a tensor or a tuple of tensors, got {type(value).__name__}"
            )
        dtype = dtypes[0] if dtypes and value.is_floating_point() else value.dtype
        found.append(torch.empty(value.shape, dtype=dtype, device="meta"))
    return tuple(found)


def _check_count(model: nn.Module, given: int) -> None:
    """Raise UnsupportedModel if ``forward`` takes more example inputs, or fewer."""
    parameters = inspect.signature(model.forward).parameters.values()
    required = [one.name for one in parameters if one.default is one.empty]
    by_name = [one.name for one in parameters if one.kind is one.KEYWORD_ONLY]
    any_number = any(one.kind is one.VAR_POSITIONAL for one in parameters)
    positional = [one.name for one in parameters if one.kind < one.VAR_POSITIONAL]
    if missing := [one for one in by_name if one in required]:
        raise UnsupportedModel(
            f"forward takes {missing[0]!r} by its name only, which example_inputs cannot give: "
            f"leave them out. {_ESCAPE}"
        )
    least = sum(one in required for one in positional)
    most = math.inf if any_number else len(positional)
    if not least <= given <= most:
        raise UnsupportedModel(
            f"example_inputs has {given} tensor{'s' * (given != 1)}, and forward takes "
            f"{', '.join(positional) or 'none'}"
        )


def set_mode(model: nn.Module, training: bool) -> None:
    """``model.train(training)``.

    Raises:
        UnsupportedModel: its class means something else by ``train``.
    """
    try:
        model.train(training)
    except Exception as error:
        raise UnsupportedModel(
            f"{type(model).__name__}.train({training}) does not set the mode, but raises "
            f"{type(error).__name__}: {error}. {_ESCAPE}"
        ) from error


def _shapes(
    graph_module: fx.GraphModule, inputs: tuple[Tensor, ...]
) -> Mapping[fx.Node, torch.Size]:
    """Shapes of all intermediate tensors, found on the meta device: nothing is computed."""
    try:
        finder = _ShapeFinder(graph_module, graph_module.graph, inputs)
        with _OnMeta(), warnings.catch_warnings():
            # What the code is warned of, it is when it runs.
            warnings.simplefilter("ignore")
            for node in graph_module.graph.nodes:
                finder.find(node)
    except Exception as error:
        raise _misfit(inputs, error) from error
    return finder.shapes


def _misfit(inputs: tuple[Tensor, ...], error: Exception) -> UnsupportedModel:
    """What the model says to inputs of these sizes."""
    sizes = ", ".join(str(tuple(value.shape)) for value in inputs)
    cause = error.__cause__ or error
    reason = next(iter(str(cause).splitlines()), type(cause).__name__)
    if "more than 1 value per channel" in reason:
        reason += "; give a batch of two or more"
    return UnsupportedModel(f"example_inputs of shape {sizes} do not fit the model: {reason}")


def _is_value(found: Any) -> bool:
    """Whether sizes alone do not say what it is."""
    return found is None or isinstance(found, Tensor)


def _line() -> str:
    """Which line of the model's code is running."""
    frame = inspect.currentframe()
    while frame is not None:
        code = frame.f_code
        folders = code.co_filename.split("/")
        if "torch" not in folders and code.co_filename != __file__:
            return f"{code.co_filename}:{frame.f_lineno}"
        frame = frame.f_back
    return "unknown"


def _on_meta(tensor: Tensor) -> Tensor:
    """One like it, without values."""
    if is_lazy(tensor):
        kind: Any = type(tensor)
        return cast(Tensor, kind(requires_grad=False, device="meta", dtype=tensor.dtype))
    twin = torch.empty_like(tensor, device="meta", requires_grad=False)
    return nn.Parameter(twin, False) if isinstance(tensor, nn.Parameter) else twin


class _OnMeta(TorchDispatchMode):
    """Every tensor stays on the meta device, whatever device the code names."""

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        if any(argument.name == "device" for argument in function._schema.arguments):
            kwargs["device"] = torch.device("meta")
        return function(*args, **kwargs)


class _ShapeFinder(fx.Interpreter):
    """Runs a graph on twins of its modules whose tensors have no values.

    What depends on values has no shape that could be known, nor has what depends on that.
    """

    def __init__(self, root: nn.Module, graph: fx.Graph, inputs: tuple[Tensor, ...]) -> None:
        super().__init__(root, graph=graph)
        self.extra_traceback = False
        self.args_iter = iter(inputs)
        self._twins: dict[int, Any] = {}
        self.shapes: dict[fx.Node, torch.Size] = {}
        self.unknown: set[fx.Node] = set()

    def find(self, node: fx.Node) -> Any:
        """Its value, as far as sizes tell."""
        waiting = [node]
        if not self.env:
            # They take the inputs in their order, and come before all others.
            waiting += reversed([one for one in self.graph.nodes if one.op == "placeholder"])
        while waiting:
            last = waiting[-1]
            missing = [one for one in last.all_input_nodes if one not in self.env]
            waiting += missing
            if not missing and waiting.pop() not in self.env:
                self.env[last] = self.run_node(last)
        return self.env[node]

    def run_node(self, n: fx.Node) -> Any:
        if any(source in self.unknown for source in n.all_input_nodes) or self._is_opaque(n):
            self.unknown.add(n)
            return None
        try:
            value = super().run_node(n)
        except Exception as error:
            # Else the sizes do not fit.
            if not isinstance(error, NotImplementedError) and "meta" not in str(error):
                raise
            self.unknown.add(n)
            return None
        if isinstance(value, Tensor):
            self.shapes[n] = value.shape
        return value

    def fetch_attr(self, target: str) -> Any:
        found = super().fetch_attr(target)
        if id(found) not in self._twins:
            parts = found.modules() if isinstance(found, nn.Module) else ()
            held = [*tree_leaves([one.__dict__ for one in parts]), found]
            for tensor in held:
                if isinstance(tensor, Tensor) and id(tensor) not in self._twins:
                    self._twins[id(tensor)] = _on_meta(tensor)
        return copy.deepcopy(found, self._twins)

    def call_module(self, target: Any, args: Any, kwargs: Any) -> Any:
        # Among several processes it runs on an accelerator only.
        is_synchronized = type(self.fetch_attr(target)) is nn.SyncBatchNorm
        return args[0] if is_synchronized else super().call_module(target, args, kwargs)

    def call_method(self, target: Any, args: Any, kwargs: Any) -> Any:
        # Everything stays on the meta device, and a machine without a GPU can plan for one.
        return args[0] if target == "cuda" else super().call_method(target, args, kwargs)

    def _is_opaque(self, n: fx.Node) -> bool:
        """Whether its code cannot, or must not, run without values: hooks may keep what they see.

        Those of lazy modules are torch's own, and give them their shapes.
        """
        if n.op != "call_module":
            return False
        module = self.fetch_attr(str(n.target))
        lazy = isinstance(module, nn.modules.lazy.LazyModuleMixin)
        return is_scripted(module) or (own_hooks(module) and not lazy)
