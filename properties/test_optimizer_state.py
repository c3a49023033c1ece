"""The optimizer's state goes along: after a cycle it is that of a network born rescaled.

What is promised is the state, not the trajectory. With learning rate 0, eps 0 and no coupled
weight decay, n gradient steps and then a cycle leave the same weights and state as the cycle and
then the same n steps.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from properties import oracle
from properties.implementation import current, requires
from properties.specs import Hidden, Net
from properties.strategies import C_FACTORS, dtypes_of, nets

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
PAIR = Net(inputs=3, hidden=(Hidden(out=4, slope=0.1),), decades=1, seed=4)


def optimizer_of(kind: str, model: nn.Module, **options: Any) -> torch.optim.Optimizer:
    """One of ``torch.optim`` whose steps leave the weights where they are."""
    found: torch.optim.Optimizer = getattr(torch.optim, kind)(
        model.parameters(), **{**NEUTRAL[kind], **options}
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


def start(model: nn.Sequential, optimizer: torch.optim.Optimizer, c: float) -> Callable[[], None]:
    order = current().capabilities.orders[0]
    return current().stepper(model, optimizer, p=2.0, c=c, order=order, batchnorm="affine")


def state(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Every buffer of a parameter's shape, as ``parameter/buffer``."""
    return {
        f"{name}/{key}": value
        for name, parameter in model.named_parameters()
        for key, value in optimizer.state[parameter].items()
        if isinstance(value, Tensor) and value.shape == parameter.shape
    }


def both_ways(
    net: Net, kind: str, c: float, steps: int, **options: Any
) -> list[tuple[dict[str, Tensor], dict[str, Tensor]]]:
    """Weights and state after steps and a cycle, and after the cycle and the steps."""
    found = []
    for cycle_first in (False, True):
        model = net.build()
        optimizer = optimizer_of(kind, model, **options)
        step = start(model, optimizer, c)
        if cycle_first:
            step()
        gradient_steps(model, optimizer, net, steps)
        if not cycle_first:
            step()
        weights = {name: value.detach() for name, value in model.named_parameters()}
        found.append((weights, state(model, optimizer)))
    return found


NETS = nets(dtypes=dtypes_of("float64"), dead=False, max_decades=1.0)


@requires(momentum=...)
@given(NETS, C_FACTORS, st.integers(1, 3), st.sampled_from(DECLARED or ("none",)))
def test_state_commutes_with_cycles(net: Net, c: float, steps: int, kind: str) -> None:
    """Steps then cycle, and cycle then steps, end in one state."""
    if kind == "Muon":  # takes matrices only
        hidden = tuple(Hidden(out=one.out, bias=False) for one in net.hidden)
        net = replace(net, axes=0, head="linear", hidden=hidden, head_bias=False)
    elif NEUTRAL[kind].get("eps") == 0:  # a gradient of zero would give 0/0
        hidden = tuple(Hidden(out=one.out, bias=one.bias, slope=0.1) for one in net.hidden)
        net = replace(net, axes=0, head="linear", hidden=hidden)
    (weights, buffers), (other_weights, other_buffers) = both_ways(net, kind, c, steps)
    assert buffers, f"{kind} has no state"
    for name, buffer in buffers.items():
        parameter = name.split("/")[0]
        assert torch.equal(weights[parameter], other_weights[parameter]), f"{name}\n{net!r}"
        # Per entry, weight and gradient scale inversely: this power of the product is invariant.
        scale = weights[parameter].abs() ** degree(kind, name)
        product, other = buffer * scale, other_buffers[name] * scale
        # Gradients of at most 5 layers of a few dozen terms round by about 1e-13 of their largest.
        difference = (product - other).abs().max().item()
        bound = 1e-9 * product.abs().max().item() + 1e-300
        assert difference <= bound, oracle.failure(net, f"{kind}, {name}", difference, bound)


def degree(kind: str, name: str) -> int:
    """1 for a buffer that is linear in gradients, 2 for a quadratic one, 0 for normalized ones."""
    key = name.split("/")[1]
    if key in ("exp_avg_sq", "max_exp_avg_sq", "square_avg", "sum"):
        return 2
    normalized = {("RMSprop", "momentum_buffer"), ("Adadelta", "acc_delta"), ("Rprop", "step_size")}
    return 0 if (kind, key) in normalized else 1


@requires(momentum="SGD")
def test_momentum_moves() -> None:
    """The equality above is not that of buffers that never changed."""
    net = Net(inputs=3, hidden=(Hidden(out=4, batchnorm=True), Hidden(out=4)), decades=1, seed=4)
    model = net.build()
    optimizer = optimizer_of("SGD", model)
    gradient_steps(model, optimizer, net, 1)
    before = {name: buffer.clone() for name, buffer in state(model, optimizer).items()}
    start(model, optimizer, 1.0)()
    after = state(model, optimizer)
    # Layer 0 stands in front of the BatchNorm, and the output's bias belongs to no group.
    fixed = {f"{name}/momentum_buffer" for name in ("0.weight", "0.bias", "5.bias")}
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == set(before) - fixed


ENDS = {
    "SGD": ({"weight_decay": 0.1}, "momentum_buffer", 1),
    "Adam": ({"weight_decay": 0.1}, "exp_avg", 1),
    "Adamax": ({"eps": 0.1}, "exp_inf", 1),
    "RMSprop": ({"eps": 0.1}, "momentum_buffer", 0),
}


@pytest.mark.parametrize("kind", ENDS)
def test_where_the_promise_ends(kind: str) -> None:
    """Coupled weight decay adds the weight itself to the gradient; eps has a scale of its own."""
    if kind not in DECLARED:
        pytest.skip(f"not applicable: {current().name} does not declare momentum={kind}")
    options, key, power = ENDS[kind]
    for extra, equal in (({}, True), (options, False)):
        (weights, one), (_, other) = both_ways(PAIR, kind, 1.0, 2, **extra)
        scale = weights["0.weight"] ** power
        name = f"0.weight/{key}"
        same = torch.allclose(one[name] * scale, other[name] * scale, rtol=1e-6)
        assert same == equal, f"{kind} with {extra}"
