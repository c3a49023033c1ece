"""Code that is not the model's own while it runs: hooks put on by forward, compiled functions."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import enorm
from enorm.tests.test_escapes import kept
from enorm.tests.test_trace import Written, groups, reasons

INPUTS = torch.randn(5, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
PUT_ON = "the forward code puts hooks, or another forward, on it"


class Hooking(nn.Module):
    """Three layers, and code that does something to one of the modules first."""

    def __init__(self, code: Callable[[Hooking], Any]) -> None:
        super().__init__()
        self.net = nn.Sequential(
            *(nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 6))
        )
        self.code = code

    def forward(self, x: Tensor) -> Any:
        """What the code leaves beside the result is returned too."""
        seen: Any = self.code(self)
        y = self.net(x)
        for one in (*self.net, self.net):
            one._forward_hooks.clear()
            one._forward_pre_hooks.clear()
            one.__dict__.pop("forward", None)
        return (y, *seen) if isinstance(seen, list) else y


def adding(index: int) -> Callable[[Hooking], object]:
    return lambda m: m.net[index].register_forward_hook(lambda _, x, y: y + 1)


def adding_before(m: Hooking) -> object:
    return m.net[1].register_forward_pre_hook(lambda _, x: x[0] + 1)


def collecting(m: Hooking) -> list[Tensor]:
    seen: list[Tensor] = []
    m.net[1].register_forward_hook(lambda _, x, y: seen.append(y))
    return seen


def replacing(m: Hooking) -> None:
    m.net[1].forward = lambda x: x + 1


@pytest.mark.parametrize(
    ("code", "left"),
    [
        (adding(1), [(["net.2"], ["net.4"], 6)]),
        (adding_before, [(["net.2"], ["net.4"], 6)]),
        (adding(2), []),
        (collecting, [(["net.2"], ["net.4"], 6)]),
        (replacing, [(["net.2"], ["net.4"], 6)]),
    ],
    ids=["an activation", "what it reads", "a layer", "collected", "another forward"],
)
def test_what_forward_puts_on_its_modules_is_a_wall(
    code: Callable[[Hooking], Any], left: list[Any]
) -> None:
    model = Hooking(code).double()
    for example in (None, INPUTS):
        plan = enorm.trace(model, example)
        assert groups(plan) == left
        assert reasons(plan) == [PUT_ON]
    before = copy.deepcopy(model)
    if left:
        enorm.balance_(model, plan)
    for one, other in zip(before(INPUTS), model(INPUTS), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-12)
    with pytest.raises(enorm.UnsupportedModel, match="no rounding bound is known for net"):
        enorm.error_bound(model, INPUTS)
    assert not any(module._forward_hooks for module in model.modules()), "as it was"


def test_a_hooked_container_says_so() -> None:
    def code(m: Hooking) -> None:
        m.net.register_forward_hook(lambda *_: None)

    class Leaving(Hooking):
        def forward(self, x: Tensor) -> Any:
            self.code(self)
            return self.net(x)

    # Hooks that are there when it is called may stay for later calls.
    for kind in (Hooking, Leaving):
        plan = enorm.trace(kind(code))
        assert plan.groups == ()
        assert {skip.where for skip in plan.skipped} == {"net (Sequential)"}
        assert set(reasons(plan)) == {PUT_ON}


def test_a_container_with_another_forward_is_as_it_was_seen() -> None:
    def code(m: Hooking) -> None:
        layers = list(m.net)
        m.net.forward = lambda x: layers[4](F.relu(layers[2](x)))  # type: ignore[method-assign]

    model = Hooking(code).double()
    plan = enorm.trace(model)
    assert groups(plan) == [(["net.2"], ["net.4"], 6)]
    assert plan.skipped == ()
    kept(model, plan, INPUTS)


def test_hooks_for_later_calls_are_refused() -> None:
    """The next call runs them, and this one does not show it."""

    def late(m: Written, x: Tensor) -> Tensor:
        h: Tensor = m.b(F.relu(m.a(x)))
        m.a.register_forward_hook(lambda _, x, y: y + 1)
        return h

    with pytest.raises(enorm.UnsupportedModel, match="leaves forward hooks on 'a' for later calls"):
        enorm.trace(Written(late))

    def of_all(m: Written, x: Tensor) -> Tensor:
        with torch.nn.modules.module.register_module_forward_hook(lambda _, x, y: y + 1):
            result: Tensor = m.b(F.relu(m.a(x)))
        return result

    with pytest.raises(enorm.UnsupportedModel, match="registers forward hooks of all modules"):
        enorm.trace(Written(of_all))


def test_values_that_hooks_collect_are_missed_in_so_many_words() -> None:
    class Reading(Hooking):
        def forward(self, x: Tensor) -> Tensor:
            seen = self.code(self)
            self.net(x)
            result: Tensor = seen[0]
            return result

    with pytest.raises(enorm.UnsupportedModel, match=r"IndexError.*Forward hooks, by which it may"):
        enorm.trace(Reading(collecting))

    class Asking(Hooking):
        def forward(self, x: Tensor) -> Any:
            self.code(self)
            return self.net(x) if self.net(x).shape[0] > 2 else x

    with pytest.raises(
        enorm.UnsupportedModel, match=r"Forward hooks, by which.*If it asks for size"
    ):
        enorm.trace(Asking(collecting))


@pytest.fixture
def swish() -> Any:
    with warnings.catch_warnings():
        # Newer versions of torch advise against it.
        warnings.simplefilter("ignore")
        return torch.jit.script(_swish)


def _swish(x: Tensor) -> Tensor:
    return x * torch.sigmoid(x)


def test_a_compiled_function_is_a_wall(swish: Any) -> None:
    model = Written(lambda m, x: m.c(F.relu(m.b(swish(m.a(x)))))).double()
    for example in (None, INPUTS):
        plan = enorm.trace(model, example)
        assert groups(plan) == [(["b"], ["c"], 6)]
        assert [(one.where, one.reason) for one in plan.skipped] == [
            ("_swish in forward", "torch.jit has compiled it, so that its code cannot be seen")
        ]
    kept(model, plan, INPUTS)
    torch.testing.assert_close(swish(INPUTS), _swish(INPUTS))


def test_modules_that_forward_makes_are_looked_into() -> None:
    model = Written(lambda m, x: m.b(nn.LeakyReLU(0.1)(m.a(x)))).double()
    plan = enorm.trace(model)
    assert groups(plan) == [(["a"], ["b"], 6)]
    kept(model, plan, INPUTS)
    hidden = [nn.Linear(6, 6)]
    with pytest.raises(enorm.UnsupportedModel, match="not a member of this module"):
        enorm.trace(Written(lambda m, x: m.b(hidden[0](m.a(x)))))
