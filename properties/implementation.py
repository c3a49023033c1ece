"""The implementation under test, and what it declares to be able to do.

A suite runs against one implementation, chosen by ``--enorm-impl=MODULE:ATTRIBUTE`` or the
environment variable ``ENORM_IMPL``. The attribute is a function ``load(path)`` that returns an
:class:`Implementation`; ``path`` is what ``--enorm-impl-path`` (``ENORM_IMPL_PATH``) gave, or None.
"""

from __future__ import annotations

import importlib
import math
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields
from functools import cache
from inspect import signature
from pathlib import Path
from typing import Any, Literal, get_args

import pytest
from torch import nn
from torch.optim import Optimizer

Order = Literal["cyclic", "jacobi"]
Rule = Literal["affine", "ignore"]
# What a capability may hold, where it is not free.
_KNOWN: dict[str, tuple[Any, ...]] = {
    "orders": get_args(Order),
    "batchnorm": get_args(Rule),
    "convolution": (1, 2, 3),
    "mixed": (1, 2, 3),
    "momentum": (
        *("SGD", "Adam", "AdamW", "NAdam", "RAdam", "Adamax"),
        *("RMSprop", "Rprop", "Adagrad", "Adadelta", "Muon"),
    ),
    "dtypes": ("float64", "float32", "bfloat16", "float16"),
}
# Methods that are called only where the capability is declared.
_METHODS = {
    "group_updates": "updates",
    "precondition_bias": "preconditioned",
    "solvers": "balance",
    "power_of_two": "balance",
}

DEFAULT = "properties.adapters.ours:load"


@dataclass(frozen=True)
class Capabilities:
    """What an implementation declares; a property beyond it is not applicable.

    What is declared and fails is a failure. What no capability stands for, such as leaving dead
    units alone, every implementation has to do.

    Attributes:
        p: exponents of the norm that it takes, or None for every positive number.
        c: whether it takes a depth factor other than 1.
        orders: of the updates within a cycle that it can be asked for: one after the other, or all
            from the same weights.
        last_pair: whether it balances the last weight too.
        biases: whether it scales the biases of hidden layers.
        convolution: numbers of axes of convolutions without Linear layers behind them.
        mixed: numbers of axes of convolutions with Linear layers behind a flatten.
        batchnorm: rules that it can follow: ``affine`` keeps the function, ``ignore`` does not.
        momentum: optimizers of ``torch.optim`` whose state it carries, by name; SGD's is momentum.
        group_updates: whether it can be asked for one group at a time.
        precondition_bias: whether it can let biases learn, with SGD, as if never rescaled.
        dtypes: names of the parameters' dtypes that it takes.
        solvers: of its own way to the minimum; empty if it has cycles only.
        power_of_two: whether its solvers can be restricted to scales 2^n.
    """

    p: tuple[float, ...] | None = None
    c: bool = True
    orders: tuple[Order, ...] = ("cyclic",)
    last_pair: bool = True
    biases: bool = True
    convolution: tuple[int, ...] = (1, 2, 3)
    mixed: tuple[int, ...] = (1, 2, 3)
    batchnorm: tuple[Rule, ...] = ()
    momentum: tuple[str, ...] = ()
    group_updates: bool = False
    precondition_bias: bool = False
    dtypes: tuple[str, ...] = ("float64", "float32")
    solvers: tuple[str, ...] = ()
    power_of_two: bool = False


@dataclass(frozen=True)
class Balanced:
    """What an implementation's own solver tells.

    Attributes:
        cycles: how many it took.
        converged: whether one more would move no scale by more than ``tol``.
        rewrites: how often it stored each weight; None if it did in every cycle. Each time may
            round, and the bounds grow with it.
    """

    cycles: int
    converged: bool
    rewrites: int | None = None

    @property
    def stored(self) -> int:
        """How often each weight was stored, once at least."""
        return max(1, self.cycles if self.rewrites is None else self.rewrites)


class Implementation:
    """What the suite needs of an implementation.

    Models are ``nn.Sequential`` chains of :class:`properties.specs.Net`, in eval or train mode, and
    are changed in place. An adapter inherits what it does not declare, or has the same methods.
    """

    name: str
    version: str
    capabilities: Capabilities

    def stepper(
        self,
        model: nn.Sequential,
        optimizer: Optimizer | None,
        *,
        p: float,
        c: float,
        order: Order,
        batchnorm: Rule,
    ) -> Callable[[], None]:
        """A function that applies one cycle each time it is called."""
        raise NotImplementedError

    def preconditioned(
        self,
        model: nn.Sequential,
        optimizer: Optimizer,
        *,
        p: float,
        c: float,
        order: Order,
        batchnorm: Rule,
    ) -> Callable[[], None]:
        """As ``stepper``, with biases that learn as if never rescaled; called only if declared."""
        raise NotImplementedError

    def updates(
        self, model: nn.Sequential, *, p: float, c: float, batchnorm: Rule
    ) -> Iterator[None]:
        """One cycle, pausing after the update of each group; called only if declared."""
        raise NotImplementedError

    def balance(
        self,
        model: nn.Sequential,
        *,
        p: float,
        c: float,
        solver: str,
        tol: float,
        max_cycles: int,
        power_of_two: bool,
    ) -> Balanced:
        """Rescale to the minimum; called only for declared solvers, ``batchnorm="affine"``."""
        raise NotImplementedError


@cache
def current() -> Implementation:
    """The implementation under test.

    Raises:
        pytest.UsageError: it cannot be loaded; the message says why.
    """
    target = os.environ.get("ENORM_IMPL") or DEFAULT
    path = os.environ.get("ENORM_IMPL_PATH")
    module, _, attribute = target.partition(":")
    if not (module and attribute):
        raise pytest.UsageError(f"--enorm-impl={target} names no MODULE:ATTRIBUTE")
    try:
        load: Any = getattr(importlib.import_module(module), attribute)
        found: Implementation = load(Path(path) if path else None)
        fault = _fault(found)
    except (Exception, SystemExit) as error:  # whatever somebody else's code may raise
        text = f"--enorm-impl={target} cannot be loaded: {type(error).__name__}: {error}"
        raise pytest.UsageError(text) from error
    if fault is not None:
        raise pytest.UsageError(f"--enorm-impl={target} gives no implementation: {fault}")
    return found


def _fault(found: Any) -> str | None:
    """What is wrong with an implementation, as far as looking at it tells."""
    if isinstance(found, type):
        return f"load returned the class {found.__name__}, and not an instance of it"
    able = getattr(found, "capabilities", None)
    if not isinstance(able, Capabilities):
        return f"its capabilities are no Capabilities but {able!r}"
    for name in ("name", "version"):
        text = getattr(found, name, None)
        if not isinstance(text, str) or not text.strip() or "\n" in text:
            return f"its {name} is no line of text but {text!r}"
    for field in fields(Capabilities):
        name, value = field.name, getattr(able, field.name)
        if isinstance(field.default, bool):
            if not isinstance(value, bool):
                return f"capability {name} must be True or False, got {value!r}"
            continue
        if name == "p" and value is None:
            continue
        if not isinstance(value, tuple):
            return f"capability {name} must be a tuple, got {value!r}"
        unknown = [one for one in value if name in _KNOWN and one not in _KNOWN[name]]
        if unknown:
            return f"capability {name} holds {unknown[0]!r}, which is none of {_KNOWN[name]}"
        if name in ("p", "orders", "dtypes") and not value:
            return f"capability {name} is empty"
        if len(set(value)) < len(value):
            return f"capability {name} holds something twice: {value!r}"
    numbers = [p for p in able.p or () if isinstance(p, (int, float)) and not isinstance(p, bool)]
    if able.p is not None and not (len(numbers) == len(able.p) and all(map(_positive, numbers))):
        return f"capability p must hold finite numbers above 0, got {able.p!r}"
    if not all(isinstance(solver, str) and solver for solver in able.solvers):
        return f"capability solvers must hold names, got {able.solvers!r}"
    if able.power_of_two and not able.solvers:
        return "it declares power_of_two, and no solver to restrict"
    if able.precondition_bias and not able.biases:
        return "it declares precondition_bias, and not biases"
    needed = ["stepper", *(method for name, method in _METHODS.items() if getattr(able, name))]
    for method in needed:
        own = getattr(found, method, None)
        if not callable(own) or getattr(own, "__func__", None) is getattr(Implementation, method):
            return f"it has no method {method}, which its capabilities need"
        asked = signature(getattr(Implementation, method)).parameters.values()
        named = [one.name for one in asked if one.kind is one.KEYWORD_ONLY]
        # All but self and the named ones stand in their places.
        places = [None] * (len(asked) - len(named) - 1)
        try:
            signature(own).bind(*places, **dict.fromkeys(named))
        except ValueError:  # of one that is written in C
            continue
        except TypeError as error:
            return f"its method {method} cannot be called as it has to be: {error}"
    return None


def _positive(p: float) -> bool:
    return 0 < p < math.inf


def requires(**needs: Any) -> pytest.MarkDecorator:
    """Mark a property as applicable only where capabilities contain ``needs``.

    A need is the value of a capability, one of its elements where it is a tuple, or ``...`` for
    anything but nothing.
    """
    capabilities = current().capabilities
    known = {field.name for field in fields(Capabilities)}
    missing = []
    for name, need in needs.items():
        assert name in known, f"{name} is no capability"
        have = getattr(capabilities, name)
        met = bool(have) if need is ... else have == need
        if isinstance(have, tuple) and need is not ...:
            met = need in have
        if name == "p" and have is None:
            met = True
        if not met:
            missing.append(name if need in (..., True) else f"{name}={need}")
    return pytest.mark.skipif(bool(missing), reason=not_applicable(", ".join(missing)))


def not_applicable(missing: str) -> str:
    """Why a property is skipped."""
    return f"not applicable: {current().name} does not declare {missing}"
