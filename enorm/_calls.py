"""What calling a module runs: the forward code of its class, or something put in its place."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import fx, nn

# Where functions live that run a forward code in another precision and change nothing else, as
# accelerate's under mixed precision.
_PRECISION = ("torch.amp.autocast_mode", "accelerate.utils.operations")
# Methods on the way from a call of a model to its forward code.
_ON_THE_WAY = ("forward", "_call_impl")


def is_scripted(module: nn.Module) -> bool:
    """Whether ``torch.jit`` has compiled it, so that its code cannot be recorded."""
    return isinstance(module, torch.jit.ScriptModule)


def replaced_methods(module: nn.Module) -> list[str]:
    """Methods of its class that the module has an own version of, but for its precision."""
    if is_scripted(module):
        # Those of compiled code are all of this kind, or not, as in a copy.
        return []
    return sorted(
        name
        for name, value in module.__dict__.items()
        if callable(value)
        and inspect.isroutine(getattr(type(module), name, None))
        and not is_own_forward(module, value)
    )


def unseen_call(model: nn.Module) -> str | None:
    """What a call of ``model`` runs where ``torch.fx`` records its class's ``forward`` instead."""
    for name in _ON_THE_WAY:
        if name in model.__dict__ and not is_own_forward(model, model.__dict__[name]):
            return f"its {name} was replaced on the instance"
    for name in ("__call__", "_call_impl"):
        for kind in type(model).__mro__:
            own = vars(kind).get(name)
            # A GraphModule's own only says more about errors.
            if own is None or getattr(own, "__module__", "") == fx.graph_module.__name__:
                continue
            if kind is not nn.Module:
                return f"its class {kind.__name__} overrides {name}"
            break
    return None


def is_own_forward(module: nn.Module, method: Any) -> bool:
    """Whether ``method`` is the class's ``forward``, in wrappers that only choose a precision."""
    if is_scripted(module):
        return False
    function = getattr(method, "__func__", method)
    while function is not type(module).forward:
        home = getattr(function, "__globals__", {}).get("__name__", type(function).__module__)
        if home not in _PRECISION or not hasattr(function, "__wrapped__"):
            return False
        function = function.__wrapped__
    return True
