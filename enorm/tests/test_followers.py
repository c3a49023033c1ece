"""What goes along with a parameter: state of any optimizer, gradients, averaged copies."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

import enorm
from enorm import _followers


class Lion(Optimizer):
    """Steps by the sign of an average of gradients (Chen et al. 2023)."""

    def __init__(self, params: Any, lr: float = 0.0) -> None:
        super().__init__(params, {"lr": lr})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """One step."""
        for group in self.param_groups:
            for parameter in group["params"]:
                state = self.state[parameter]
                average = state.setdefault("exp_avg", torch.zeros_like(parameter))
                direction = (0.9 * average + 0.1 * parameter.grad).sign()
                parameter.sub_(direction, alpha=group["lr"])
                average.lerp_(parameter.grad, 0.01)


@pytest.fixture(autouse=True)
def _forget() -> Any:
    kept = dict(_followers._STATE_POWERS)
    yield
    _followers._STATE_POWERS.clear()
    _followers._STATE_POWERS.update(kept)


def network(width: int = 5) -> nn.Sequential:
    """Convolution, residual-free, uneven units."""
    torch.manual_seed(0)
    model = nn.Sequential(
        *(nn.Conv1d(2, width, 1), nn.ReLU(), nn.Flatten(), nn.Linear(3 * width, 4)),
        *(nn.ReLU(), nn.Linear(4, 2)),
    ).double()
    with torch.no_grad():
        model.get_parameter("0.weight").mul_(torch.linspace(0.1, 3, width).view(-1, 1, 1))
    return model


INPUTS = torch.randn(6, 2, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def backward(model: nn.Module) -> None:
    """Gradients of an uneven loss."""
    outputs = model(INPUTS)
    (outputs * torch.linspace(1, 2, outputs.numel()).view_as(outputs)).sum().backward()


def tensors(model: nn.Module) -> list[Tensor]:
    return [parameter.detach().clone() for parameter in model.parameters()]


def test_gradients_become_those_of_the_rescaled_network() -> None:
    model = network()
    backward(model)
    result = enorm.balance_(model)
    found = [
        parameter.grad.clone() for parameter in model.parameters() if parameter.grad is not None
    ]
    model.zero_grad()
    backward(model)
    for one, parameter in zip(found, model.parameters(), strict=True):
        torch.testing.assert_close(one, parameter.grad, rtol=1e-10, atol=1e-12)
    result.undo_()


def test_undo_takes_gradients_and_copies_back() -> None:
    model = network()
    backward(model)
    average = copy.deepcopy(model)
    gradients = [
        parameter.grad.clone() for parameter in model.parameters() if parameter.grad is not None
    ]
    before = tensors(average)
    enorm.balance_(model, copies=[average]).undo_()
    for kept, parameter in zip(gradients, model.parameters(), strict=True):
        assert parameter.grad is not None
        assert torch.equal(kept, parameter.grad)
    assert all(map(torch.equal, before, average.parameters()))


def test_a_registered_rule_carries_state() -> None:
    """Steps and then a cycle leave the state of a cycle and then the same steps."""
    enorm.register_state_rule(Lion, {"exp_avg": -1})
    states = []
    for first in ("steps", "cycle"):
        model = network()
        optimizer = Lion(model.parameters())
        stepper = enorm.ENorm(model, optimizer)
        if first == "cycle":
            stepper.step()
        for _ in range(3):
            optimizer.zero_grad()
            backward(model)
            optimizer.step()
        if first == "steps":
            stepper.step()
        states.append([optimizer.state[one]["exp_avg"] for one in model.parameters()])
    for one, other in zip(*states, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-13)


def test_an_optimizer_without_a_rule_is_told_how_to_get_one() -> None:
    model = network()
    with pytest.raises(TypeError, match=r"enorm\.register_state_rule\(Lion, \.\.\.\)"):
        enorm.ENorm(model, Lion(model.parameters()))


@pytest.mark.parametrize(
    "call", [enorm.balance_, lambda m, optimizer: enorm.ENorm(m, optimizer).step()]
)
def test_unknown_state_is_an_error_and_changes_nothing(call: Callable[..., Any]) -> None:
    """Even where the unknown buffer belongs to the last parameter."""
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    last = model.get_parameter("5.weight")
    optimizer.state[last]["velocity"] = torch.ones_like(last)
    before = tensors(model)
    with pytest.raises(
        TypeError, match=r"^state 'velocity' of SGD for parameter '5.weight' is unk"
    ):
        call(model, optimizer=optimizer)
    assert all(map(torch.equal, before, model.parameters()))


class Averaging(Optimizer):
    """Steps along the mean of all gradients, which it keeps in a list."""

    def __init__(self, parameters: Iterable[nn.Parameter]) -> None:
        super().__init__(parameters, {})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Keep one more."""
        for parameter in self.param_groups[0]["params"]:
            kept = self.state[parameter].setdefault("history", [])
            kept.append(parameter.grad.clone())
            parameter.sub_(sum(kept) / len(kept), alpha=0.01)


@pytest.mark.parametrize(
    ("rule", "kind", "words"),
    [
        ({}, TypeError, "state 'history' of Averaging for parameter '0.weight' is unknown"),
        ({"history": -1}, ValueError, "'0.weight' is a list, not one tensor of shape"),
    ],
)
def test_state_in_a_list_is_an_error(rule: Any, kind: type[Exception], words: str) -> None:
    enorm.register_state_rule(Averaging, rule)
    model = network()
    optimizer = Averaging(model.parameters())
    stepper = enorm.ENorm(model, optimizer)
    backward(model)
    optimizer.step()
    before = tensors(model)
    with pytest.raises(kind, match=words):
        stepper.step()
    assert all(map(torch.equal, before, model.parameters()))


def test_absent_state_is_skipped() -> None:
    model = network()
    optimizer = torch.optim.AdamW(model.parameters())
    model[0].weight.requires_grad_(False)
    backward(model)
    optimizer.step()
    enorm.ENorm(model, optimizer).step()
    assert model[0].weight not in optimizer.state


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((nn.Linear, {"exp_avg": -1}), "must be a subclass of torch.optim.Optimizer, got"),
        ((Lion, {"exp_avg": -0.5}), "power of 'exp_avg' must be a whole number, got -0.5"),
        ((Lion, None), "powers must be a dict by the buffers' keys, got None"),
    ],
)
def test_rules_that_are_none(arguments: Any, words: str) -> None:
    with pytest.raises(TypeError, match=words):
        enorm.register_state_rule(*arguments)


def averaged(model: nn.Module) -> nn.Module:
    return AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.5))


@pytest.mark.parametrize(
    "make",
    [
        copy.deepcopy,
        averaged,
        lambda model: {name: one.detach().clone() for name, one in model.named_parameters()},
    ],
    ids=["model", "AveragedModel", "tensors by name"],
)
def test_copies_follow(make: Callable[[nn.Module], Any]) -> None:
    """A copy that equals the model still does after a step."""
    model = network()
    average = make(model)
    stepper = enorm.ENorm(model, copies=[average])
    for _ in range(3):
        stepper.step()
    its = average.values() if isinstance(average, dict) else average.parameters()
    for mine, other in zip(model.parameters(), its, strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-12, atol=0)


def test_an_average_keeps_its_function() -> None:
    """Its weights lie between those of several steps, and so does what it computes."""
    model = network()
    average = averaged(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    for _ in range(3):
        optimizer.zero_grad()
        backward(model)
        optimizer.step()
        average.update_parameters(model)  # type: ignore[operator]
    before = average(INPUTS)
    enorm.balance_(model, copies=[average])
    torch.testing.assert_close(average(INPUTS), before, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("way", ["assigned", "replaced"])
def test_a_copy_is_rescaled_as_it_is_by_then(way: str) -> None:
    """Its tensors may be others than those it had when it was given."""
    model = network()
    average = torch.optim.swa_utils.AveragedModel(model)
    stepper = enorm.ENorm(model, copies=[average])
    if way == "assigned":
        average.load_state_dict(copy.deepcopy(average.state_dict()), assign=True)
    else:
        average.module = copy.deepcopy(model)
    stepper.step()
    for mine, its in zip(tensors(average.module), model.parameters(), strict=True):
        torch.testing.assert_close(mine, its, rtol=1e-14, atol=0)


def test_what_is_no_copy() -> None:
    model = network()
    with pytest.raises(TypeError, match=r"write copies=\[\.\.\.\]"):
        enorm.ENorm(model, copies=copy.deepcopy(model))  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="copies must be a list of models, got NoneType"):
        enorm.ENorm(model, copies=None)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"a model or tensors by name, got int"):
        enorm.ENorm(model, copies=[3])  # type: ignore[list-item]
    before = tensors(model)
    twin = copy.deepcopy(model)
    averaged = torch.optim.swa_utils.AveragedModel(model)
    for twice in ([twin, twin], [averaged, averaged.module]):
        with pytest.raises(ValueError, match="or with another copy: pass each only once"):
            enorm.ENorm(model, copies=twice).step()
    with pytest.raises(ValueError, match=r"a copy shares the memory of parameter '0.weight'"):
        enorm.balance_(model, copies=[model])
    with pytest.raises(
        ValueError, match=r"a copy has no parameter '0.weight' of the model's shape"
    ):
        enorm.balance_(model, copies=[network(6)])
    assert all(map(torch.equal, before, model.parameters()))


def adafactor() -> tuple[nn.Sequential, Optimizer]:
    # Wide enough on all sides for sums over them to be of another shape.
    model = nn.Sequential(nn.Linear(5, 6), nn.ReLU(), nn.Linear(6, 2)).double()
    optimizer = torch.optim.Adafactor(model.parameters())
    model(torch.randn(4, 5, dtype=torch.float64)).square().sum().backward()
    optimizer.step()
    return model, optimizer


@pytest.mark.parametrize(
    ("rule", "kind", "words"),
    [
        ({"variance": -2}, TypeError, r"state 'row_var' of Adafactor for parameter '.\.weight' is"),
        (
            {"variance": -2, "row_var": -2, "col_var": -2},
            ValueError,
            r"state '(row|col)_var' of Adafactor .* has shape .* cannot go with its scales",
        ),
    ],
)
@pytest.mark.parametrize("way", ["step", "balance"])
def test_factored_state_is_refused_before_anything_changes(
    rule: dict[str, int], kind: type[Exception], words: str, way: str
) -> None:
    """Sums over rows and columns have no power of ``d`` to go with."""
    enorm.register_state_rule(torch.optim.Adafactor, rule)
    model, optimizer = adafactor()
    before = tensors(model)
    stepper = enorm.ENorm(model, optimizer, c=3.0)
    act = stepper.step if way == "step" else lambda: enorm.balance_(model, optimizer=optimizer)
    with pytest.raises(kind, match=words):
        act()
    assert all(map(torch.equal, model.parameters(), before))


def test_state_that_does_not_go_along_may_have_any_shape() -> None:
    enorm.register_state_rule(torch.optim.Adafactor, {"variance": -2, "row_var": 0, "col_var": 0})
    model, optimizer = adafactor()
    enorm.ENorm(model, optimizer).step()


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda one: one[:1].clone().expand_as(one), "shares memory within itself"),
        (lambda one: one.to("meta"), "is on meta, and that is on cpu"),
    ],
)
def test_copies_that_cannot_be_written_are_refused_before_anything_changes(
    make: Callable[[Tensor], Tensor], words: str
) -> None:
    model = network()
    before = tensors(model)
    copies = [{name: make(one.detach()) for name, one in model.named_parameters()}]
    with pytest.raises(ValueError, match=words):
        enorm.ENorm(model, copies=copies).step()
    with pytest.raises(ValueError, match=words):
        enorm.balance_(model, copies=copies)
    assert all(map(torch.equal, model.parameters(), before))
