"""Forward code may do to its module what it likes: none of it is left when it was only recorded."""

from __future__ import annotations

import contextlib
import copy
import pickle
import random
import sys
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from enorm._memory import is_lazy, storage


@contextlib.contextmanager
def untouched(model: nn.Module) -> Iterator[None]:
    """Attributes, the containers in them, tensors and random states are afterwards as before."""
    modules = list(model.modules())
    attributes = [dict(module.__dict__) for module in modules]
    containers: dict[int, tuple[Any, Any]] = {}
    for found in attributes:
        _keep_containers(list(found.values()), containers)
    tensors = [tensor for tensor in (*model.parameters(), *model.buffers()) if not is_lazy(tensor)]
    # What `tensor.data = other` replaces.
    memory = [(tensor, tensor.detach()) for tensor in tensors]
    writes = _CopyOnWrite(tensors)
    randomness = Randomness()
    try:
        with writes:
            yield
    finally:
        randomness.restore()
        for container, kept in containers.values():
            container.clear()
            (container.extend if isinstance(kept, (list, deque)) else container.update)(kept)
        for module, before in zip(modules, attributes, strict=True):
            module.__dict__.clear()
            module.__dict__.update(before)
        for tensor, alias in memory:
            if storage(tensor) != storage(alias) or tensor.shape != alias.shape:
                tensor.data = alias
        with torch.no_grad():
            for tensor, content in writes.kept:
                tensor.copy_(content)


class Randomness:
    """The generators that forward code may draw from without naming one, as they stand."""

    def __init__(self) -> None:
        self._generators: dict[str, tuple[Callable[[], Any], Callable[[Any], Any]]] = {
            "Python's random": (random.getstate, random.setstate),
            "torch's generator": (torch.get_rng_state, torch.set_rng_state),
        }
        # What nobody has imported nobody draws from, and importing it takes long.
        if (numpy := sys.modules.get("numpy")) is not None:
            self._generators["numpy.random"] = numpy.random.get_state, numpy.random.set_state
        self._states = {name: get() for name, (get, _) in self._generators.items()}

    def moved(self) -> list[str]:
        """Names of those that were drawn from since."""
        found = []
        for name, (get, _) in self._generators.items():
            before, now = self._states[name], get()
            if isinstance(now, Tensor):
                same = torch.equal(before, now)
            else:
                same = pickle.dumps(before) == pickle.dumps(now)
            if not same:
                found.append(name)
        return found

    def restore(self) -> None:
        """All of them as they stood."""
        for name, (_, put) in self._generators.items():
            put(self._states[name])


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
