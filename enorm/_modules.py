"""Which modules may have their parameters rescaled as if each were used once, in one place."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator, Sequence, Set

import torch
from torch import Tensor, nn

from enorm._graph import Recording, storage
from enorm._sharded import class_of, local, own_hooks

EXCLUDED = "excluded by the caller"

_DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


def unusable(
    model: nn.Module, recordings: Sequence[Recording], exclude: Set[str]
) -> dict[str, str]:
    """Modules that cannot be rescaled, or cannot be looked through, by name; and why."""
    modules = dict(model.named_modules(remove_duplicate=False))
    calls: Counter[str] = Counter()
    read: set[str] = set()
    for recording in recordings:
        nodes = recording.graph_module.graph.nodes
        # Called once in train and once in eval mode is called once.
        calls |= Counter(str(node.target) for node in nodes if node.op == "call_module")
        read |= {str(node.target) for node in nodes if node.op == "get_attr"}
    touched = frozenset[int]().union(*(recording.read for recording in recordings))
    shared = set(_sharing(model))
    inside = {
        child: name
        for name in calls
        for child in modules
        if name in modules and child.startswith(f"{name}.")
    }
    reasons: dict[str, str] = {}
    for name, module in modules.items():
        own = dict(module.named_parameters(recurse=False))
        names = {f"{name}.{key}" if name else key for key in own}
        if module._forward_hooks or module._forward_pre_hooks:
            reasons[name] = "forward hooks may change what passes"
        elif "forward" in module.__dict__:
            reasons[name] = "its forward was replaced"
        elif any(name == other or name.startswith(f"{other}.") for other in exclude):
            reasons[name] = EXCLUDED
        elif own and calls[name] > 1:
            reasons[name] = f"called {calls[name]} times"
        elif own and name in inside and calls[name]:
            reasons[name] = f"also used inside {inside[name]}"
        elif any(isinstance(value, nn.UninitializedParameter) for value in own.values()):
            reasons[name] = "its parameters have no shape before the first forward"
        elif names & shared:
            reasons[name] = "its parameters share memory with others"
        elif names & read or any(storage(value) in touched for value in own.values()):
            reasons[name] = "the forward code also reads its parameters directly"
        elif getattr(module, "weight", None) is not None and "weight" not in own:
            reasons[name] = "its weight is computed, not a parameter"
        elif any(value.dtype not in _DTYPES for value in own.values()):
            kinds = ", ".join(sorted({str(value.dtype) for value in own.values()}))
            reasons[name] = f"its parameters are {kinds}, not float64, float32 or a half precision"
        elif any(value.numel() == 0 for value in own.values()):
            reasons[name] = "it has no units"
    return reasons


def _sharing(model: nn.Module) -> Iterator[str]:
    """Names of parameters any entry of which has a second name, in whatever tensor."""
    spans: dict[int, list[tuple[int, int, str]]] = {}
    tensors: list[tuple[str, Tensor]] = [*model.named_parameters(remove_duplicate=False)]
    tensors += list(model.named_buffers(remove_duplicate=False))
    for name, tensor in tensors:
        if isinstance(tensor, (nn.UninitializedParameter, nn.UninitializedBuffer)):
            continue
        tensor = local(tensor)
        if tensor.numel() == 0:
            continue
        first = int(tensor.storage_offset())
        extents = zip(tensor.shape, tensor.stride(), strict=True)
        last = first + sum(int(size - 1) * int(stride) for size, stride in extents)
        if last - first + 1 < tensor.numel():
            yield name
        spans.setdefault(storage(tensor), []).append((first, last, name))
    for parts in spans.values():
        reach, owner = -1, ""
        for first, last, name in sorted(parts):
            if first <= reach:
                yield name
                yield owner
            if last > reach:
                reach, owner = last, name


def fingerprint(model: nn.Module) -> str:
    """SHA-256 of what a plan depends on.

    Module types and printed settings, functions kept as attributes, hooks, shapes of parameters
    and which of them share memory.
    """
    digest = hashlib.sha256()
    for name, module in model.named_modules(remove_duplicate=False):
        kind = class_of(module)
        functions = sorted(
            f"{key}={value.__module__}.{value.__qualname__}"
            for key, value in module.__dict__.items()
            if hasattr(value, "__qualname__")
        )
        hooked = own_hooks(module)
        hooked |= "forward" in module.__dict__
        text = f"{name}|{kind.__module__}.{kind.__qualname__}|{module.extra_repr()}"
        digest.update(f"{text}|{functions}|{hooked}\n".encode())
    for name, parameter in model.named_parameters(remove_duplicate=False):
        if not isinstance(parameter, nn.UninitializedParameter):
            digest.update(f"{name}|{tuple(parameter.shape)}\n".encode())
    digest.update(str(sorted(set(_sharing(model)))).encode())
    return digest.hexdigest()
