"""Preconditioned biases learn as if no cycle had ever come between the steps."""

from __future__ import annotations

from typing import Any

import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from torch import Tensor, nn

from properties import oracle
from properties.implementation import Order, current, requires
from properties.specs import Hidden, Net
from properties.strategies import (
    C_FACTORS,
    ORDER,
    ORDERS,
    P_NORMS,
    C,
    P,
    dtypes_of,
    example_where,
    nets,
)
from properties.test_optimizer_state import gradient_steps, state

RATE = 1e-2
OPTIONS = st.sampled_from(
    [
        {},
        {"momentum": 0.9},
        {"momentum": 0.9, "nesterov": True},
        {"weight_decay": 0.1},
        {"momentum": 0.5, "dampening": 0.5, "weight_decay": 0.1, "maximize": True},
    ]
)
DEEP = Net(inputs=3, hidden=(Hidden(out=4),) * 4, decades=1, seed=1)


def biases(model: nn.Module) -> dict[str, Tensor]:
    """Of all layers, BatchNorm's too."""
    return {name: value for name, value in model.named_parameters() if name.endswith("bias")}


def bias_steps(model: nn.Module, options: dict[str, float]) -> torch.optim.SGD:
    """An SGD that moves biases only."""
    named = dict(model.named_parameters())
    rest = [parameter for name, parameter in named.items() if not name.endswith("bias")]
    learning: dict[str, Any] = {"params": list(biases(model).values()), "lr": RATE, **options}
    groups: list[dict[str, Any]] = [learning, {"params": rest}]
    return torch.optim.SGD(groups, lr=0.0)


def trained(
    net: Net, p: float, c: float, order: Order, options: dict[str, float], steps: int, how: str
) -> nn.Sequential:
    """Biases trained alone or with cycles in between, then taken back to their first scale."""
    model = net.build()
    optimizer = bias_steps(model, options)
    cycle = None
    if how != "alone":
        make = current().preconditioned if how == "preconditioned" else current().stepper
        cycle = make(model, optimizer, p=p, c=c, order=order, batchnorm="affine")
    for _ in range(steps):
        if cycle is not None:
            cycle()
        gradient_steps(model, optimizer, net, 1)
    oracle.rescale_(model, -oracle.log_scales(net.build(), model))
    return model


NETS = nets(dtypes=dtypes_of("float64"), dead=False, max_decades=1.0)


@requires(precondition_bias=True)
@given(NETS, P_NORMS, C_FACTORS, ORDERS, OPTIONS, st.integers(1, 4))
@example_where("float64" in current().capabilities.dtypes, DEEP, P, C, ORDER, {"momentum": 0.9}, 4)
def test_biases_learn_as_if_never_rescaled(
    net: Net, p: float, c: float, order: Order, options: dict[str, float], steps: int
) -> None:
    """With weights held, biases end where they do without cycles, up to their scales."""
    start, alone, found = (
        biases(model)
        for model in (
            net.build(),
            trained(net, p, c, order, options, steps, "alone"),
            trained(net, p, c, order, options, steps, "preconditioned"),
        )
    )
    assume(start)
    for name, bias in alone.items():
        # Gradients of at most 6 layers of a few dozen terms round by about 1e-13 of their largest.
        moved = (bias - start[name]).abs().max().item()
        bound = 1e-9 * (moved + bias.abs().max().item()) + 1e-300
        error = (found[name] - bias).abs().max().item()
        assert error <= bound, oracle.failure(net, f"{name} after {steps} steps", error, bound)


@requires(precondition_bias=True)
@given(NETS, P_NORMS, C_FACTORS, ORDERS, st.integers(1, 3))
def test_all_else_is_as_with_plain_cycles(
    net: Net, p: float, c: float, order: Order, steps: int
) -> None:
    """With biases held, weights are rescaled and learn as where nothing is preconditioned."""
    found = []
    momentum = 0.9 if "SGD" in current().capabilities.momentum else 0.0
    for make in (current().stepper, current().preconditioned):
        model = net.build()
        held = list(biases(model).values())
        learning = [one for name, one in model.named_parameters() if not name.endswith("bias")]
        groups: list[dict[str, Any]] = [{"params": learning, "lr": 1e-6}, {"params": held}]
        groups = [group for group in groups if group["params"]]
        optimizer = torch.optim.SGD(groups, lr=0.0, momentum=momentum)
        cycle = make(model, optimizer, p=p, c=c, order=order, batchnorm="affine")
        for _ in range(steps):
            cycle()
            gradient_steps(model, optimizer, net, 1)
        found.append((dict(model.named_parameters()), state(model, optimizer)))
    (plain, buffers), (weights, others) = found
    pairs = {name: (plain[name].detach(), weights[name].detach()) for name in plain}
    # What a bias gathers is what is preconditioned.
    pairs |= {name: (buffers[name], others[name]) for name in buffers if "bias/" not in name}
    for name, (one, other) in pairs.items():
        # As above.
        error = (one - other).abs().max().item()
        bound = 1e-9 * one.abs().max().item() + 1e-300
        assert error <= bound, oracle.failure(net, f"{name} after {steps} steps", error, bound)


@requires(precondition_bias=True, c=True, dtypes="float64")
def test_biases_learn_otherwise_without_it() -> None:
    """The equality above is not that of biases that hardly learn."""
    alone, found = (biases(trained(DEEP, P, 1.2, ORDER, {}, 4, how)) for how in ("alone", "cycles"))
    assert any(not torch.allclose(found[name], bias, rtol=0.01) for name, bias in alone.items())
