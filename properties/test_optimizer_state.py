"""The optimizer's state goes along: after a cycle it is that of a network born rescaled.

What is promised is the state, not the trajectory. With learning rate 0, eps 0 and no coupled
weight decay, n gradient steps and then a cycle leave the same weights and state as the cycle and
then the same n steps.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from properties import oracle
from properties.implementation import Order, current, not_applicable, requires
from properties.specs import Hidden, Net
from properties.strategies import (
    BIAS,
    C_FACTORS,
    ORDER,
    ORDERS,
    P_NORMS,
    WIDE_DTYPES,
    P,
    nets,
)

DECLARED = current().capabilities.momentum
# With these, state is a function of gradients alone: no step, no eps, no weight decay.
NEUTRAL: dict[str, dict[str, Any]] = {
    "SGD": {"lr": 0.0, "momentum": 0.9},
    "Adam": {"lr": 0.0, "amsgrad": True},
    "AdamW": {"lr": 0.0, "weight_decay": 0.1},
    "NAdam": {"lr": 0.0},
    "RAdam": {"lr": 0.0},
    "Adamax": {"lr": 0.0, "eps": 0.0},
    "RMSprop": {"lr": 0.0, "eps": 0.0, "momentum": 0.9, "centered": True},
    "Rprop": {"lr": 1e-3, "step_sizes": (0.0, 0.0)},
    "Adagrad": {"lr": 0.0},
    "Adadelta": {"lr": 0.0, "eps": 0.0},
    "Muon": {"lr": 0.0, "weight_decay": 0.0},
}
PAIR = Net(inputs=3, hidden=(Hidden(out=4, slope=0.1, bias=BIAS),), decades=1, seed=4)


def optimizer_of(
    kind: str, model: nn.Module, groups: int = 1, **options: Any
) -> torch.optim.Optimizer:
    """One of ``torch.optim`` whose steps leave the weights where they are."""
    parameters = list(model.parameters())
    parts = [{"params": parameters[start::groups]} for start in range(groups)]
    found: torch.optim.Optimizer = getattr(torch.optim, kind)(
        [part for part in parts if part["params"]], **{**NEUTRAL[kind], **options}
    )
    return found


def gradient_steps(
    model: nn.Module, optimizer: torch.optim.Optimizer, net: Net, steps: int
) -> None:
    """Steps on fixed inputs; the loss weighs outputs differently, so that no gradient cancels."""
    inputs = net.draw_inputs()
    for step in range(steps):
        optimizer.zero_grad()
        outputs = model(inputs)
        weights = torch.linspace(1, 2 + step, outputs.numel(), dtype=outputs.dtype)
        (outputs * weights.view_as(outputs)).sum().backward()
        optimizer.step()


def start(
    model: nn.Sequential,
    optimizer: torch.optim.Optimizer,
    c: float,
    p: float = P,
    order: Order = ORDER,
) -> Callable[[], None]:
    return current().stepper(model, optimizer, p=p, c=c, order=order, batchnorm="affine")


def state(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Every buffer of a parameter's shape, as ``parameter/buffer``."""
    return {
        f"{name}/{key}": value
        for name, parameter in model.named_parameters()
        for key, value in optimizer.state[parameter].items()
        if isinstance(value, Tensor) and value.shape == parameter.shape
    }


def rest(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """What a cycle has to leave: names of all state, what is no such buffer, and the options."""
    moving = state(model, optimizer)
    found: dict[str, Any] = {}
    for name, parameter in model.named_parameters():
        for key, value in optimizer.state[parameter].items():
            is_moving = f"{name}/{key}" in moving
            found[f"{name}/{key}"] = ... if is_moving else copy.deepcopy(value)
    for index, group in enumerate(optimizer.param_groups):
        options = {key: value for key, value in group.items() if key != "params"}
        found[f"group {index}"] = options
    return found


def both_ways(
    net: Net,
    kind: str,
    c: float,
    steps: int,
    p: float = P,
    order: Order = ORDER,
    groups: int = 1,
    **options: Any,
) -> list[tuple[dict[str, Tensor], dict[str, Tensor]]]:
    """Weights and state after steps and a cycle, and after the cycle and the steps."""
    found = []
    for cycle_first in (False, True):
        model = net.build()
        optimizer = optimizer_of(kind, model, groups, **options)
        step = start(model, optimizer, c, p, order)
        if cycle_first:
            step()
        gradient_steps(model, optimizer, net, steps)
        if not cycle_first:
            kept = rest(model, optimizer)
            step()
            left = rest(model, optimizer)
            changed = [key for key in {**kept, **left} if kept.get(key) != left.get(key)]
            assert not changed, f"{kind}: a cycle changed {changed}\n{net!r}"
        weights = {name: value.detach() for name, value in model.named_parameters()}
        found.append((weights, state(model, optimizer)))
    return found


NETS = nets(dtypes=WIDE_DTYPES, dead=False, max_decades=1.0)
# Gradients of at most 5 layers of a few dozen terms round by about 500 ε of their largest.
TOLERANCES = {"float64": 1e-9, "float32": 1e-2}


@requires(momentum=...)
@given(
    NETS,
    P_NORMS,
    C_FACTORS,
    ORDERS,
    st.integers(1, 3),
    st.sampled_from(DECLARED or ("none",)),
    st.integers(1, 2),
)
def test_state_commutes_with_cycles(
    net: Net, p: float, c: float, order: Order, steps: int, kind: str, groups: int
) -> None:
    """Steps then cycle, and cycle then steps, end in one state."""
    if kind == "Muon":  # takes matrices only
        hidden = tuple(Hidden(out=one.out, bias=False) for one in net.hidden)
        net = replace(net, axes=0, head="linear", hidden=hidden, head_bias=False)
    elif NEUTRAL[kind].get("eps") == 0:  # a gradient of zero would give 0/0
        hidden = tuple(Hidden(out=one.out, bias=one.bias, slope=0.1) for one in net.hidden)
        net = replace(net, axes=0, head="linear", hidden=hidden)
    (weights, buffers), (other_weights, other_buffers) = both_ways(
        net, kind, c, steps, p, order, groups
    )
    assert buffers, f"{kind} has no state"
    for name, buffer in buffers.items():
        parameter = name.split("/")[0]
        assert torch.equal(weights[parameter], other_weights[parameter]), f"{name}\n{net!r}"
        # Per entry, weight and gradient scale inversely: this power of the product is invariant.
        scale = weights[parameter].abs() ** degree(kind, name)
        product, other = buffer * scale, other_buffers[name] * scale
        difference = (product - other).abs().max().item()
        tiny = torch.finfo(product.dtype).smallest_normal
        bound = TOLERANCES[net.dtype] * product.abs().max().item() + tiny
        assert difference <= bound, oracle.failure(net, f"{kind}, {name}", difference, bound)


def degree(kind: str, name: str) -> int:
    """1 for a buffer that is linear in gradients, 2 for a quadratic one, 0 for normalized ones."""
    key = name.split("/")[1]
    if key in ("exp_avg_sq", "max_exp_avg_sq", "square_avg", "sum"):
        return 2
    normalized = {("RMSprop", "momentum_buffer"), ("Adadelta", "acc_delta"), ("Rprop", "step_size")}
    return 0 if (kind, key) in normalized else 1


@requires(momentum="SGD", dtypes="float64", last_pair=True)
def test_momentum_moves() -> None:
    """The equality above is not that of buffers that never changed."""
    affine = "affine" in current().capabilities.batchnorm
    # With a slope no gradient is zero.
    unit = Hidden(out=4, slope=0.1, bias=BIAS)
    net = Net(inputs=3, hidden=(replace(unit, batchnorm=affine), unit), decades=1, seed=4)
    model = net.build()
    middle = next(one for one in model if isinstance(one, nn.Linear) and one.in_features == 4)
    with torch.no_grad():
        middle.weight[0, 0] = 0.0
    optimizer = optimizer_of("SGD", model)
    gradient_steps(model, optimizer, net, 1)
    before = {name: buffer.clone() for name, buffer in state(model, optimizer).items()}
    start(model, optimizer, 1.0)()
    after = state(model, optimizer)
    # The output's bias belongs to no group, and a layer in front of a BatchNorm neither.
    fixed = {f"{len(model) - 1}.bias/momentum_buffer"}
    if affine:
        fixed |= {"0.weight/momentum_buffer", "0.bias/momentum_buffer"}
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == set(before) - fixed
    # A weight of zero has momentum too, which goes by its row and its column as all others do.
    name = f"{list(model).index(middle)}.weight/momentum_buffer"
    factors = after[name] / before[name]
    torch.testing.assert_close(factors[0, 0] * factors[1, 1], factors[0, 1] * factors[1, 0])


ENDS: dict[str, tuple[dict[str, Any], str, int]] = {
    "SGD": ({"weight_decay": 0.1}, "momentum_buffer", 1),
    "Adam": ({"weight_decay": 0.1}, "exp_avg", 1),
    "Adamax": ({"eps": 0.1}, "exp_inf", 1),
    "RMSprop": ({"eps": 0.1}, "momentum_buffer", 0),
}


@requires(dtypes="float64")
@pytest.mark.parametrize("kind", ENDS)
def test_where_the_promise_ends(kind: str) -> None:
    """Coupled weight decay adds the weight itself to the gradient; eps has a scale of its own."""
    if kind not in DECLARED:
        pytest.skip(not_applicable(f"momentum={kind}"))
    options, key, power = ENDS[kind]
    for extra, equal in (({}, True), (options, False)):
        (weights, one), (_, other) = both_ways(PAIR, kind, 1.0, 2, **extra)
        scale = weights["0.weight"] ** power
        name = f"0.weight/{key}"
        same = torch.allclose(one[name] * scale, other[name] * scale, rtol=1e-6)
        assert same == equal, f"{kind} with {extra}"
