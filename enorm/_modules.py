"""Which modules may have their parameters rescaled as if each were used once, in one place."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import types
from collections import Counter
from collections.abc import Iterator, Sequence, Set
from typing import Any

import torch
from torch import Tensor, nn

from enorm._calls import is_own_forward, is_scripted, replaced_methods
from enorm._functional import HOOKED, owner_of, reads_values
from enorm._graph import Recording
from enorm._homogeneous import (
    BATCH_NORMS,
    CONVOLUTIONS,
    LAYER_NORMS,
    TRANSPOSED,
    is_elementwise,
    sizes_of,
)
from enorm._memory import is_lazy, sharing, storage
from enorm._sharded import class_of, own_hooks

EXCLUDED = "excluded by the caller"

_DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


def unusable(
    model: nn.Module, recordings: Sequence[Recording], exclude: Set[str]
) -> dict[str, str]:
    """Modules that cannot be rescaled, or cannot be looked through, by name; and why."""
    modules = dict(model.named_modules(remove_duplicate=False))
    calls: Counter[str] = Counter()
    # Of each name what is called by it, or stands in for functions of its parameters.
    uses: dict[str, dict[_Use, nn.Module]] = {}
    leaves: set[str] = set()
    read: set[str] = set()
    hooked: set[str] = set()
    for recording in recordings:
        nodes = recording.graph_module.graph.nodes
        called = recording.calls()
        # Called once in train and once in eval mode is called once.
        calls |= Counter(map(owner_of, called))
        leaves |= {str(node.target) for node in called}
        for node, module in called.items():
            uses.setdefault(owner_of(node), {})[_use(module)] = module
        read |= {str(node.target) for node in nodes if reads_values(node)}
        hooked |= {owner_of(node) for node in called if HOOKED in node.meta}
    touched = frozenset[int]().union(*(recording.read for recording in recordings))
    shared = set(sharing(model))
    leaves &= modules.keys()
    inside = {child: name for child in modules for name in _above(child) if name in leaves}
    reasons: dict[str, str] = {}
    for name, module in modules.items():
        own = dict(module.named_parameters(recurse=False))
        names = {f"{name}.{key}" if name else key for key in own}
        # Its parameters are not rescaled, however often they are used.
        by_slope = is_elementwise(module)
        if is_scripted(module):
            reasons[name] = "torch.jit has compiled it, so that its code cannot be seen"
        # Such modules have hooks that go with the first forward.
        elif any(is_lazy(value) for value in own.values()):
            reasons[name] = "its parameters have no shape before the first forward"
        elif module._forward_hooks or module._forward_pre_hooks:
            reasons[name] = "forward hooks may change what passes"
        elif replaced := replaced_methods(module):
            reasons[name] = f"its {replaced[0]} was replaced"
        elif name in hooked:
            reasons[name] = "the forward code puts hooks, or another forward, on it"
        elif any(other in ("", name) or name.startswith(f"{other}.") for other in exclude):
            reasons[name] = EXCLUDED
        elif own and calls[name] > 1 and not by_slope:
            reasons[name] = f"called {calls[name]} times"
        elif own and len(uses.get(name, ())) > 1:
            reasons[name] = "its parameters serve another kind of layer in train mode"
        elif own and name in inside and calls[name]:
            reasons[name] = f"also used inside {inside[name]}"
        elif any(value.layout is not torch.strided for value in own.values()):
            reasons[name] = "its parameters are sparse"
        elif names & shared and not by_slope:
            reasons[name] = "its parameters share memory with others"
        elif names & read or any(storage(value) in touched for value in own.values()):
            reasons[name] = "the forward code also reads its parameters directly"
        elif missing := [key for key in PAIR if _is_set(module, key) and key not in own]:
            reasons[name] = f"its {missing[0]} is computed, not a parameter"
        elif any(value.dtype not in _DTYPES for value in own.values()):
            kinds = ", ".join(sorted({str(value.dtype) for value in own.values()}))
            reasons[name] = f"its parameters are {kinds}, not float64, float32 or a half precision"
        elif any(value.numel() == 0 for value in own.values()):
            reasons[name] = "it has no units"
        elif any(value.is_inference() for value in own.values()):
            reasons[name] = "its parameters were made in inference mode, and cannot be written"
        else:
            user = next(iter(uses.get(name, {}).values()), module)
            if (wrong := wrong_shape(user, type(user))) is not None:
                reasons[name] = wrong
    return reasons


def _above(name: str) -> Iterator[str]:
    """Names of the modules that a module is inside of, from the outermost."""
    place = name.find(".")
    while place >= 0:
        yield name[:place]
        place = name.find(".", place + 1)


_Use = tuple[type[nn.Module], int, bool]


def _use(module: nn.Module) -> _Use:
    """What decides which axes of which parameters are whose."""
    return type(module), getattr(module, "groups", 1), _is_set(module, "bias")


PAIR = ("weight", "bias")


def _is_set(module: nn.Module, key: str) -> bool:
    """Whether it holds a tensor by that name, or a property of its class, as parametrizations do.

    The property is not asked: computing a spectral norm changes the module.
    """
    held = {**module._buffers, **module._parameters, **module.__dict__}.get(key)
    return isinstance(held, Tensor) or isinstance(getattr(type(module), key, None), property)


def wrong_shape(module: nn.Module, kind: type[nn.Module]) -> str | None:
    """Why the shapes of its parameters are none that its kind is made with."""
    weight, bias = (module._parameters.get(key) for key in PAIR)
    if weight is None:
        return None
    if kind in BATCH_NORMS or kind in LAYER_NORMS:
        rows = weight.shape
    elif kind is nn.Linear or kind in CONVOLUTIONS or kind in TRANSPOSED:
        axes = 2 + CONVOLUTIONS.get(kind, TRANSPOSED.get(kind, 0))
        if weight.dim() != axes:
            return f"its weight has {weight.dim()} axes, not {axes}"
        rows = torch.Size(sizes_of(module, weight)[1:])
    else:
        return None
    if bias is not None and bias.shape != rows:
        return f"its bias has shape {tuple(bias.shape)}, not {tuple(rows)}"
    return None


def fingerprint(model: nn.Module) -> str:
    """SHA-256 of what a plan depends on.

    Module types and printed settings, public attributes that are True, False or a string,
    functions kept as attributes, hooks, shapes of parameters and which of them share memory.
    """
    digest = hashlib.sha256()
    for name, module in model.named_modules(remove_duplicate=False):
        kind = class_of(module)
        functions = sorted(
            f"{key}={_described(value)}"
            # Compiled code keeps its methods there, and a copy of it other ones.
            for key, value in ({} if is_scripted(module) else module.__dict__).items()
            if hasattr(value, "__qualname__") or isinstance(value, functools.partial)
            if not is_own_forward(module, value)
        )
        hooked = own_hooks(module) or bool(replaced_methods(module))
        text = f"{name}|{kind.__module__}.{kind.__qualname__}|{module.extra_repr()}"
        digest.update(f"{text}|{functions}|{_switches(module)}|{hooked}\n".encode())
    for name, parameter in model.named_parameters(remove_duplicate=False):
        if not is_lazy(parameter):
            digest.update(f"{name}|{tuple(parameter.shape)}\n".encode())
    digest.update(str(sorted(set(sharing(model)))).encode())
    return digest.hexdigest()


def _switches(module: nn.Module) -> list[tuple[str, bool | str]]:
    """Public attributes that forward code may branch on, of the instance or of its class.

    Numbers are left out, for forward code counts with them; so is the mode, for a plan holds in
    both.
    """
    values: dict[str, Any] = {}
    for kind in reversed(class_of(module).__mro__):
        if kind not in nn.Module.__mro__:
            values |= vars(kind)
    values |= module.__dict__
    return sorted(
        (key, value)
        for key, value in values.items()
        if isinstance(value, (bool, str)) and not key.startswith("_") and key != "training"
    )


def _described(value: Any, deep: bool = True) -> str:
    """The same for what is alike in another process: addresses do not belong in.

    Args:
        value: a function, or what one was made with.
        deep: whether to look at what functions without a name of their own were made with.
    """
    if isinstance(value, functools.partial):
        named = {key: _described(one, deep) for key, one in sorted(value.keywords.items())}
        rest = [_described(one, deep) for one in value.args]
        return f"{_described(value.func, deep)}({rest}, {named})"
    if hasattr(value, "__qualname__"):
        name = f"{getattr(value, '__module__', None)}.{value.__qualname__}"
        # Lambdas and functions inside functions may share their name.
        if isinstance(value, types.FunctionType) and "<" in value.__qualname__:
            name += _code(value.__code__)
            name += str(_made_with(value)) if deep else ""
        return name
    if value is None or isinstance(value, (bool, int, float, str)):
        return repr(value)
    if isinstance(value, (list, tuple)):
        return str([_described(one, deep) for one in value])
    return type(value).__qualname__


def _made_with(function: types.FunctionType) -> list[str]:
    """Values that it holds, but for numbers around it, with which it may count."""
    values = [*(function.__defaults__ or ()), *(function.__kwdefaults__ or {}).values()]
    for cell in function.__closure__ or ():
        # It has none before it is assigned.
        with contextlib.suppress(ValueError):
            held = cell.cell_contents
            if isinstance(held, bool) or not isinstance(held, (int, float)):
                values.append(held)
    return [_described(one, deep=False) for one in values]


def _code(code: types.CodeType) -> str:
    constants = [
        _code(one)
        if isinstance(one, types.CodeType)
        else str(sorted(map(repr, one)))
        if isinstance(one, frozenset)
        else repr(one)
        for one in code.co_consts
    ]
    return f"{code.co_code.hex()}{code.co_names}{constants}"
