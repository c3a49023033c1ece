"""Forward code may do to its module what it likes: none of it is left when it was only recorded."""

from __future__ import annotations

import contextlib
import copy
import pickle
import random
import sys
import types
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from enorm._memory import is_lazy, storage


@contextlib.contextmanager
def untouched(model: nn.Module) -> Iterator[Randomness]:
    """Attributes, the containers in them, tensors and random states are afterwards as before.

    So are gradients, what requires them, and arrays that modules hold. Yields the generators as
    they stood.
    """
    held = _Held(model)
    # Parameters and buffers among them.
    own = [one for one in held.values() if isinstance(one, Tensor) and not is_lazy(one)]
    gradients = [(one, one.grad) for one in own if one.is_leaf]
    found = (*own, *(gradient for _, gradient in gradients if gradient is not None))
    tensors = list({id(tensor): tensor for tensor in found}.values())
    wanted = [(tensor, tensor.requires_grad) for tensor in tensors]
    arrays = [(one, one.copy()) for one in held.values() if _is_array(one)]
    # What `tensor.data = other` replaces.
    memory = [(tensor, tensor.detach()) for tensor in tensors]
    writes = _CopyOnWrite(tensors)
    randomness = Randomness(held.values())
    try:
        with writes:
            yield randomness
    finally:
        randomness.restore()
        held.restore()
        for tensor, alias in memory:
            if storage(tensor) != storage(alias) or tensor.shape != alias.shape:
                tensor.data = alias
        with torch.no_grad():
            for tensor, content in writes.kept:
                tensor.copy_(content)
        for tensor, requires_grad in wanted:
            if tensor.requires_grad != requires_grad:
                if not tensor.is_leaf:
                    tensor.detach_()
                tensor.requires_grad_(requires_grad)
        # Those that were leaves are leaves again.
        for tensor, gradient in gradients:
            if tensor.grad is not gradient:
                tensor.grad = gradient
        for array, content in arrays:
            if array.tobytes() != content.tobytes():
                array[...] = content


class _Held:
    """What modules hold, and what lies in that: containers and objects with attributes."""

    def __init__(self, model: nn.Module) -> None:
        self._containers: dict[int, tuple[Any, Any]] = {}
        self._attributes = [(module, dict(vars(module))) for module in model.modules()]
        self._keep(self._attributes)
        # Such as a meter or a cache; what these hold in turn is their own affair.
        objects = {id(one): one for one in self.values() if _has_attributes(one)}
        belongings = [(one, dict(vars(one))) for one in objects.values()]
        self._attributes += belongings
        self._keep(belongings)

    def _keep(self, attributes: list[tuple[Any, dict[str, Any]]]) -> None:
        for _, found in attributes:
            _keep_containers(list(found.values()), self._containers)

    def values(self) -> Iterator[Any]:
        """All of it."""
        for _, found in self._attributes:
            yield from found.values()
        for _, kept in self._containers.values():
            yield from kept.values() if isinstance(kept, dict) else kept

    def restore(self) -> None:
        """Everything as it was; what has not changed is not written, for others may read it."""
        for container, kept in self._containers.values():
            if not _same(container, kept):
                container.clear()
                (container.extend if isinstance(kept, (list, deque)) else container.update)(kept)
        for one, before in self._attributes:
            now = vars(one)
            for key in now.keys() - before.keys():
                del now[key]
            for key, value in before.items():
                if key not in now or now[key] is not value:
                    now[key] = value


def randomness_of(model: nn.Module) -> Randomness:
    """The generators that its forward code may draw from, as they stand."""
    return Randomness(_Held(model).values())


class Randomness:
    """The generators that forward code may draw from, as they stand.

    Those that need no name, and those that modules hold.
    """

    def __init__(self, values: Iterable[Any]) -> None:
        found: list[_Generator] = [
            ("Python's random", random.getstate, random.setstate),
            ("torch's generator", torch.get_rng_state, torch.set_rng_state),
        ]
        if torch.cuda.is_available() and torch.cuda.is_initialized():
            all_states = torch.cuda.get_rng_state_all, torch.cuda.set_rng_state_all
            found.append(("CUDA's generator", *all_states))
        # What nobody has imported nobody draws from, and importing it takes long.
        if (numpy := sys.modules.get("numpy")) is not None:
            found.append(("numpy.random", numpy.random.get_state, numpy.random.set_state))
        found += [
            (f"a {type(value).__name__} that it holds", *access)
            for value in values
            if (access := _access(value)) is not None
        ]
        self._generators = [(name, get(), get, put) for name, get, put in found]

    def moved(self) -> list[str]:
        """Names of those that were drawn from since."""
        return [
            name for name, before, get, _ in self._generators if _content(before) != _content(get())
        ]

    def restore(self) -> None:
        """All of them as they stood."""
        for _, before, _, put in self._generators:
            put(before)


def _content(state: Any) -> bytes:
    """To compare states of any make by: tensors do not pickle alike twice."""
    numbers = tree_map(lambda one: one.tolist() if isinstance(one, Tensor) else one, state)
    return pickle.dumps(numbers)


_Generator = tuple[str, Callable[[], Any], Callable[[Any], Any]]


def _access(value: Any) -> tuple[Callable[[], Any], Callable[[Any], Any]] | None:
    """How to read and set the state of a generator; None for anything else."""
    if isinstance(value, random.Random):
        return value.getstate, value.setstate
    if isinstance(value, torch.Generator):
        return value.get_state, value.set_state
    if (numpy := sys.modules.get("numpy")) is None:
        return None
    if isinstance(value, numpy.random.RandomState):
        return value.get_state, value.set_state
    if isinstance(value, numpy.random.Generator):
        bits = value.bit_generator
        return lambda: bits.state, lambda state: setattr(bits, "state", state)
    return None


def _is_array(value: Any) -> bool:
    """Whether it is a NumPy array that may be written into."""
    numpy = sys.modules.get("numpy")
    is_one = numpy is not None and isinstance(value, numpy.ndarray)
    return is_one and value.flags.writeable and not value.dtype.hasobject


def _has_attributes(value: Any) -> bool:
    """Whether it is an object of a Python class, none of torch's or of the language itself."""
    others = (nn.Module, Tensor, type, types.ModuleType, types.FunctionType, types.MethodType)
    return isinstance(getattr(value, "__dict__", None), dict) and not isinstance(value, others)


def _same(container: Any, kept: Any) -> bool:
    """Whether they hold the same objects in the same order."""
    if len(container) != len(kept):
        return False
    pairs = zip(container, kept, strict=True)
    if not all(one is other for one, other in pairs):
        return False
    values = (each.values() if isinstance(each, dict) else () for each in (container, kept))
    return all(one is other for one, other in zip(*values, strict=True))


def _keep_containers(values: list[Any], found: dict[int, tuple[Any, Any]]) -> None:
    """Shallow copies of lists, dicts, sets and deques, and of those inside them."""
    while values:
        value = values.pop()
        if isinstance(value, (list, dict, set, deque)):
            if id(value) in found:
                continue
            found[id(value)] = (value, copy.copy(value))
        elif not isinstance(value, tuple):
            continue
        values.extend(value.values() if isinstance(value, dict) else value)


class _CopyOnWrite(TorchDispatchMode):
    """Keeps the content of tensors that an operation is about to write into."""

    def __init__(self, tensors: list[Tensor]) -> None:
        super().__init__()
        self._owners: dict[int, list[Tensor]] = {}
        for tensor in tensors:
            self._owners.setdefault(storage(tensor), []).append(tensor)
        self.kept: list[tuple[Tensor, Tensor]] = []

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        for place, argument in enumerate(function._schema.arguments):
            if argument.alias_info is None or not argument.alias_info.is_write:
                continue
            value = args[place] if place < len(args) else kwargs.get(argument.name)
            for tensor in tree_leaves(value):
                if isinstance(tensor, Tensor):
                    owners = self._owners.pop(storage(tensor), [])
                    self.kept += [(owner, owner.detach().clone()) for owner in owners]
        return function(*args, **kwargs)
