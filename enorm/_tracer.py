"""``torch.fx``'s tracer, for which user code needs to be written less for it."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import functools
import gc
import inspect
import operator
import os
import sys
import threading
import weakref
from collections.abc import Iterator
from typing import Any, cast
from unittest import mock

import torch
from torch import Tensor, fx, nn, overrides
from torch.nn.modules.module import _global_forward_hooks, _global_forward_pre_hooks
from torch.utils import _device
from torch.utils._pytree import tree_leaves

from enorm._calls import is_scripted, replaced_methods
from enorm._examples import Inputs, OnMeta, ShapeFinder, misfit
from enorm._functional import HOOKED, NUMBERS, is_number
from enorm._homogeneous import registered_modules
from enorm._memory import is_lazy, storage
from enorm._sharded import own_hooks
from enorm._unsupported import ESCAPE, UnsupportedModel
from enorm._untouched import randomness_of


class _Proxy(fx.Proxy):
    """Knows ``x *= y`` from ``x = x * y``: whatever else is ``x`` changes too.

    ``x.data = y`` and ``x[i] = y`` leave a node as well. It is the number that the sizes of example
    inputs make of it, where code asks for one.
    """

    def __getattr__(self, name: str) -> fx.proxy.Attribute:
        if "tracer" not in self.__dict__:
            # Of a copy that is being made.
            raise AttributeError(name)
        if cast(Tracer, self.tracer).is_number(self):
            # Others ask a number what it can do.
            number = self._found()
            if number is not None and not hasattr(number, name):
                raise AttributeError(f"{type(number).__name__!r} object has no attribute {name!r}")
        made = _Attribute(self, name)
        if name in NUMBERS:
            # As it is now, whatever is done in place until it is used.
            _ = made.node
        return made

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
        return cast(Tracer, self.tracer).found(self)

    def _scalar(self) -> Any:
        """What it is, if that is known and no tensor."""
        return self._found() if cast(Tracer, self.tracer).is_scalar(self) else None

    def _number(self) -> Any:
        """The number that a size is, or what is computed from sizes.

        Raises:
            TypeError: without example inputs, or where it depends on values.
        """
        found = self._found()
        if _is_value(found):
            raise TypeError("a symbolically traced value is no number")
        return found

    # What the code keeps beyond its run, as in a cache by size, must not pass for a number then.

    def __eq__(self, other: object) -> Any:
        if cast(Tracer, self.tracer).closed:
            return self is other
        return self.tracer.create_proxy("call_function", operator.eq, (self, other), {})

    def __hash__(self) -> int:
        tracer, found = cast(Tracer, self.tracer), self._found()
        if not _is_value(found):
            return hash(found)
        # By a device it is mostly remembered what was made for it.
        if found is None and tracer.is_scalar(self) and not tracer.is_device(self):
            raise TypeError("the hash of a symbolically traced value is not known")
        return object.__hash__(self)

    def __repr__(self) -> str:
        found = self._scalar()
        return super().__repr__() if found is None else repr(found)

    def __str__(self) -> str:
        found = self._scalar()
        return _Text(super().__repr__()) if found is None else str(found)

    def __format__(self, form: str) -> str:
        return format(self._number(), form) if form else str(self)

    def __round__(self, digits: int | None = None) -> Any:
        return round(self._number(), digits)

    def __divmod__(self, other: Any) -> Any:
        return self // other, self % other

    def __rdivmod__(self, other: Any) -> Any:
        return other // self, other % self

    def __index__(self) -> int:
        return operator.index(self._number())

    def __int__(self) -> int:
        return int(self._number())

    def __float__(self) -> float:
        return float(self._number())


class _Text(str):
    """What a value is called in a message; what it would say itself nobody knows."""

    __slots__ = ()
    __hash__ = str.__hash__

    def __eq__(self, other: object) -> bool:
        if self is other:
            return True
        raise TypeError("the text of a symbolically traced value is not known")

    def __ne__(self, other: object) -> bool:
        return not self == other


class _Attribute(fx.proxy.Attribute, _Proxy):
    """As ``x.shape``, which is a number or a tuple as well."""


def _in_place(name: str) -> Any:
    target = getattr(operator, name)

    def method(self: fx.Proxy, other: Any) -> fx.Proxy:
        return self.tracer.create_proxy("call_function", target, (self, other), {})

    return method


for _name in ("iadd", "isub", "imul", "itruediv", "ifloordiv", "imod", "ipow", "imatmul"):
    setattr(_Proxy, f"__{_name}__", _in_place(_name))


TORCH = os.path.dirname(torch.__file__) + os.sep
_HERE = os.path.dirname(__file__)

# Attributes and methods of tensors, and of what these return, that are no tensors.
_SCALARS = frozenset(
    {
        *("numel", "nelement", "ndimension", "element_size", "itemsize", "nbytes"),
        *("storage_offset", "stride", "is_contiguous", "data_ptr", "get_device"),
        *("item", "tolist", "requires_grad"),
        *("is_cuda", "is_cpu", "is_meta", "is_leaf", "is_floating_point", "is_complex", "layout"),
        *("index", "count", "bit_length"),
    }
)

# ``torch.fx`` and what follows here replace functions for the time of tracing, for all threads.
_LOCK = threading.RLock()


class Tracer(fx.Tracer):
    """Does not look into what users vouch for, and knows which values are still held.

    Args:
        inputs: example inputs.
        sized: whether functions that take sizes are replaced by such that take values of the graph.
        settings: of ``torch.fx.Tracer``.
    """

    def __init__(self, inputs: Inputs, *, sized: bool = False, **settings: Any) -> None:
        super().__init__(**settings)
        self._inputs = inputs
        self._sized = sized
        # Modules that had forward hooks, or another forward, when they were called: neither is run.
        self.hooked: set[str] = set()
        self._numbers: set[fx.Node] = set()
        self._finder: ShapeFinder | None = None
        self._finding = False
        # Lines of code that asked for the inputs' sizes, and whether there were none.
        self.asked: dict[str, None] = {}
        self.lacking = False
        # Whether the code has run, so that what is left of it means nothing.
        self.closed = False
        self._returning = False
        self._objects: list[Any] = []
        self._proxies: list[weakref.ref[fx.Proxy]] = []
        self._parameters: dict[str, nn.Parameter] = {}
        # Whether the code, or who traces it, lets operations choose another precision.
        self.autocast = False
        # Storages of what opaque modules read, which leaves no node.
        self.read: set[int] = set()

    def trace(self, root: Any, concrete_args: dict[str, Any] | None = None) -> fx.Graph:
        self._parameters = dict(root.named_parameters(remove_duplicate=False))
        with _LOCK, contextlib.ExitStack() as stack:
            for kind, count in _BATCH_NORM_AXES.items():
                recorded = _recorded_check(kind, count)
                stack.enter_context(mock.patch.object(kind, "_check_input_dim", recorded))
            # Proxies are no tensors to code that torch.jit has compiled.
            called = mock.patch.object(torch.jit.ScriptFunction, "__call__", _call_scripted)
            stack.enter_context(called)
            if self._sized:
                stack.enter_context(_taking_sizes())
            hooked = _hooks_of(root)
            try:
                graph = super().trace(root, concrete_args)
            finally:
                self.closed = True
            left = [
                name
                for name, hooks in _hooks_of(root).items()
                if hooks != hooked.get(name, hooks) and name not in self.hooked
            ]
            if left:
                raise UnsupportedModel(
                    f"{type(root).__name__} cannot be traced: its forward code leaves forward "
                    f"hooks on {left[0] or 'itself'!r} for later calls. {ESCAPE}"
                )
            return graph

    def is_number(self, obj: fx.Proxy) -> bool:
        """Whether it is a size, what Python computes from sizes, a dtype or a device."""
        if isinstance(obj, fx.proxy.Attribute) and obj._node is None:
            return False
        return obj.node in self._numbers

    def is_scalar(self, obj: fx.Proxy) -> bool:
        """The same, or something else that is no tensor."""
        node = obj.node
        if node.target is getattr:
            return bool(self.is_number(obj) or node.args[1] in (*_SCALARS, "type"))
        of_method = node.op == "call_method" and node.target in _SCALARS
        return self.is_number(obj) or of_method or node.target is torch.numel

    def is_device(self, obj: fx.Proxy) -> bool:
        """Whether it is the device of a value."""
        if not self.is_number(obj):
            return False
        return obj.node.target is getattr and bool(obj.node.args[1] == "device")

    def create_args_for_root(
        self, root_fn: Any, is_module: bool, concrete_args: Any = None
    ) -> tuple[Any, list[Any]]:
        """What the forward code is called with: arguments keep defaults that are no tensors."""
        parameters = inspect.signature(cast(Any, self.root).forward).parameters
        any_number = [one.name for one in parameters.values() if one.kind is one.VAR_POSITIONAL]
        if any_number and not self._inputs:
            # Then there is one value for all of them, whose parts nobody has counted.
            return super().create_args_for_root(root_fn, is_module)
        positional: list[Any] = [self.root]
        named: dict[str, Any] = {}
        for place, one in enumerate(parameters.values()):
            if one.kind in (one.VAR_POSITIONAL, one.VAR_KEYWORD):
                continue
            is_input = one.default is one.empty or isinstance(one.default, Tensor)
            if not is_input and one.name not in self._inputs:
                if isinstance(one.default, (list, dict, set)):
                    # What the code puts there is not for later calls.
                    named[one.name] = copy.copy(one.default)
                continue
            made = self.create_proxy("placeholder", one.name, (), {})
            # Behind one that keeps its default only a name tells which it is.
            if one.kind is one.KEYWORD_ONLY or len(positional) <= place:
                named[one.name] = made
            else:
                positional.append(made)
        for name in self._inputs:
            if name not in parameters:
                made = self.create_proxy("placeholder", name, (), {})
                if any_number and name.startswith(f"{any_number[0]}_"):
                    positional.append(made)
                else:
                    named[name] = made

        def run(*args: Any) -> Any:
            returned = root_fn(*args, **named)
            self._returning = True
            return returned

        return run, positional

    def create_arg(self, a: Any) -> Any:
        try:
            # Those of which a graph would make another one may refuse to be made so.
            if not (self._returning and dataclasses.is_dataclass(a) and not isinstance(a, dict)):
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
        node = super().create_node(kind, target, *args, **kwargs)
        self.autocast |= torch.is_autocast_enabled("cpu") or torch.is_autocast_enabled("cuda")
        if is_number(node, self._numbers):
            self._numbers.add(node)
        return node

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
                    f"parameter in the place of {name!r}. {ESCAPE}"
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
        if not self._inputs or self.closed:
            self.lacking = True
            return None
        self._finding = True
        # What is found here is no part of the code that is recorded.
        try:
            with torch._C.DisableTorchFunction(), OnMeta():
                if self._finder is None:
                    self._finder = ShapeFinder(self.root, self.graph, self._inputs)
                found = self._finder.find(obj.node)
        except Exception as error:
            raise misfit(self._inputs, error) from error
        finally:
            self._finding = False
        if found is not None:
            self.asked[_line()] = None
        return found

    def getattr(self, attr: str, attr_val: Any, parameter_proxy_cache: Any) -> Any:
        if self._finding:
            return attr_val
        return super().getattr(attr, attr_val, parameter_proxy_cache)

    def call_module(self, m: nn.Module, forward: Any, args: Any, kwargs: Any) -> Any:
        if self._finding:
            return forward(*args, **kwargs)
        if _global_forward_hooks or _global_forward_pre_hooks:
            raise UnsupportedModel(
                f"{type(self.root).__name__} cannot be traced: its forward code registers forward "
                f"hooks of all modules, which tracing does not see. {ESCAPE}"
            )
        hooked = own_hooks(m)
        if hooked and not is_scripted(m) and not super().is_leaf_module(m, ""):
            self._look_inside(m, args, kwargs)
        try:
            made = super().call_module(m, forward, args, kwargs)
        except NameError:
            # One that the code has just made is no part of the model: its code is.
            if hooked:
                raise
            return forward(*args, **kwargs)
        if hooked or replaced_methods(m):
            # They may be there for this call only. What is looked into is as it was seen.
            node, name = next(reversed(self.graph.nodes)), self.path_of_module(m)
            if (node.op, node.target) == ("call_module", name):
                node.meta[HOOKED] = True
                self.hooked.add(name)
        return made

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
            if node.op == "get_attr":
                node.meta["read"] = True
            else:
                self.graph.erase_node(node)

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        # What hooks make of a value is not in the forward code, nor is scripted code readable.
        opaque = type(m) in registered_modules() or own_hooks(m) or is_scripted(m)
        return opaque or super().is_leaf_module(m, module_qualified_name)


def _hooks_of(model: nn.Module) -> dict[str, set[int]]:
    """Which forward hooks there are on each module."""
    return {
        name: {*module._forward_hooks, *module._forward_pre_hooks}
        for name, module in model.named_modules()
    }


_run_scripted = torch.jit.ScriptFunction.__call__


def _call_scripted(function: Any, *args: Any, **kwargs: Any) -> Any:
    """A call of what ``torch.jit`` has compiled, for values of the graph a node of it."""
    traced = _traced_in(args, kwargs)
    if traced is None:
        return _run_scripted(function, *args, **kwargs)

    def scripted(*args: Any, **kwargs: Any) -> Any:
        return _run_scripted(function, *args, **kwargs)

    scripted.__name__ = str(function.qualified_name).rpartition(".")[2]
    scripted.is_scripted = True  # type: ignore[attr-defined]
    return traced.tracer.create_proxy("call_function", scripted, args, kwargs)


# How many axes a BatchNorm's own code asks for; of BatchNorm1d two or three.
_BATCH_NORM_AXES = {nn.BatchNorm1d: None, nn.BatchNorm2d: 4, nn.BatchNorm3d: 5}

# What takes sizes and devices, and a tensor that is no value of the graph or none: torch does not
# ask whether any of them is.
_SIZED: dict[Any, tuple[str, ...]] = {
    torch: (
        *("zeros", "ones", "full", "empty", "eye", "arange", "linspace", "tensor", "as_tensor"),
        *("rand", "randn", "randint", "randperm", "finfo", "iinfo"),
    ),
    Tensor: (
        *("expand", "view", "reshape", "unflatten", "repeat", "tile", "narrow", "to"),
        *("new_zeros", "new_ones", "new_full", "new_empty", "__getitem__"),
    ),
}


def _taking(owner: Any, name: str) -> Any:
    """The function, for sizes and devices that are values of a graph a node of it."""
    function = getattr(owner, name)

    @functools.wraps(function)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        traced = _traced_in(args, kwargs)
        if traced is None:
            return function(*args, **kwargs)
        if name == "__getitem__":
            return traced.tracer.create_proxy("call_function", operator.getitem, args, kwargs)
        if owner is Tensor:
            return traced.tracer.create_proxy("call_method", name, args, kwargs)
        return traced.tracer.create_proxy("call_function", function, args, kwargs)

    return wrapped


_TAKING = {(owner, name): _taking(owner, name) for owner in _SIZED for name in _SIZED[owner]}


@contextlib.contextmanager
def _taking_sizes() -> Iterator[None]:
    """Replace functions that do not ask whether a size is a value of a graph.

    Torch keeps tables of its own functions, made when they are first asked for. None of them is to
    be made in the meantime.
    """
    overrides.get_ignored_functions()
    overrides.get_testing_overrides()
    overrides.get_overridable_functions()
    overrides.is_tensor_method_or_property(Tensor.view)
    with contextlib.suppress(AttributeError):
        _device._device_constructors()
    try:
        with contextlib.ExitStack() as stack:
            for (owner, name), taking in _TAKING.items():
                stack.enter_context(mock.patch.object(owner, name, taking))
            yield
    finally:
        rules = sys.modules.get("torch._dynamo.trace_rules")
        if rules is not None:
            rules.clear_lru_cache()


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


def _traced_in(args: Any, kwargs: Any) -> fx.Proxy | None:
    """The first value of a graph among arguments."""
    found = map(_from_graph, tree_leaves((args, kwargs)))
    return next((one for one in found if one is not None), None)


def _from_graph(value: Any) -> fx.Proxy | None:
    """A value of a graph, in a slice too."""
    parts = (value.start, value.stop, value.step) if isinstance(value, slice) else (value,)
    return next((one for one in parts if isinstance(one, fx.Proxy)), None)


def _is_value(found: Any) -> bool:
    """Whether sizes alone do not say what it is."""
    return found is None or isinstance(found, Tensor)


def _line() -> str:
    """Which line of the model's code is running."""
    frame = inspect.currentframe()
    while frame is not None:
        code = frame.f_code
        if not code.co_filename.startswith(TORCH) and os.path.dirname(code.co_filename) != _HERE:
            return f"{code.co_filename}:{frame.f_lineno}"
        frame = frame.f_back
    return "unknown"
