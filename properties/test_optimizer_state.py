"""Momentum goes along: the state after a cycle is that of a network born rescaled.

What is promised is the state, not the trajectory. With learning rate 0 and no weight decay, n
gradient steps and then a cycle leave the same weights and momentum as the cycle and then the same
n steps.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from properties import oracle
from properties.implementation import current, requires
from properties.specs import Hidden, Net
from properties.strategies import C_FACTORS, nets


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


def momentum(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    return {
        name: optimizer.state[parameter]["momentum_buffer"]
        for name, parameter in model.named_parameters()
    }


@requires(momentum=True)
@given(
    nets(dtypes=st.just("float64"), max_decades=1.0),
    C_FACTORS,
    st.integers(1, 3),
    st.booleans(),
)
def test_momentum_state_commutes_with_cycles(
    net: Net, c: float, steps: int, nesterov: bool
) -> None:
    """Steps then cycle, and cycle then steps, end in one state."""
    states = []
    for cycle_first in (False, True):
        model = net.build()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.0, momentum=0.9, nesterov=nesterov)
        step = start(model, optimizer, c)
        if cycle_first:
            step()
        gradient_steps(model, optimizer, net, steps)
        if not cycle_first:
            step()
        states.append((dict(model.named_parameters()), momentum(model, optimizer)))
    (weights, buffers), (other_weights, other_buffers) = states
    for name, buffer in buffers.items():
        assert torch.equal(weights[name], other_weights[name]), f"{name}\n{net!r}"
        # Momentum and weight scale inversely, so their product per entry has one common scale;
        # gradients of at most 5 layers of a few dozen terms round by about 1e-13 of their largest.
        product = buffer * weights[name]
        difference = (product - other_buffers[name] * weights[name]).abs().max().item()
        bound = 1e-10 * product.abs().max().item() + 1e-300
        assert difference <= bound, oracle.failure(net, f"momentum of {name}", difference, bound)


@requires(momentum=True)
def test_momentum_moves() -> None:
    """The equality above is not that of buffers that never changed."""
    net = Net(inputs=3, hidden=(Hidden(out=4, batchnorm=True), Hidden(out=4)), decades=1, seed=4)
    model = net.build()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0, momentum=0.9)
    gradient_steps(model, optimizer, net, 1)
    before = {name: buffer.clone() for name, buffer in momentum(model, optimizer).items()}
    start(model, optimizer, 1.0)()
    after = momentum(model, optimizer)
    # Layer 0 stands in front of the BatchNorm, and the output's bias belongs to no group.
    fixed = {"0.weight", "0.bias", "5.bias"}
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == set(before) - fixed


@requires(momentum=True)
def test_coupled_weight_decay_is_where_the_promise_ends() -> None:
    """Decay adds the weight itself to the gradient, and the two scale inversely."""
    net = Net(inputs=3, hidden=(Hidden(out=4),), decades=1, seed=4)
    products = []
    for cycle_first in (False, True):
        model = net.build()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.0, momentum=0.9, weight_decay=0.1)
        step = start(model, optimizer, 1.0)
        if cycle_first:
            step()
        gradient_steps(model, optimizer, net, 1)
        if not cycle_first:
            step()
        products.append(momentum(model, optimizer)["0.weight"] * model.get_parameter("0.weight"))
    assert not torch.allclose(products[0], products[1], rtol=1e-6)
