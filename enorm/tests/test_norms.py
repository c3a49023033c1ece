"""The largest entry in place of a sum, and coefficients layer by layer."""

from __future__ import annotations

import copy
import itertools
import math

import pytest
import torch
from torch import nn

import enorm
from enorm._solve import Order
from enorm.tests.test_graphs import LIVE, build
from properties.specs import Hidden, Net

CHAIN = Net(inputs=3, hidden=tuple(Hidden(out=4 + i) for i in range(4)), decades=2, seed=5)


@pytest.mark.parametrize("order", ["cyclic", "jacobi"])
def test_a_cycle_of_maxima_is_algorithm_1_with_that_norm(order: Order) -> None:
    model = CHAIN.build()
    layers = [
        enorm.reference.ChainLayer(module.weight.detach(), module.bias.detach())
        for module in model
        if isinstance(module, nn.Linear)
    ]
    assert enorm.energy(model, math.inf, 1.2) == pytest.approx(
        enorm.reference.energy(layers, p=math.inf, c=1.2)
    )
    expected, _ = enorm.reference.cycle(layers, p=math.inf, c=1.2, order=order)
    enorm.ENorm(model, p=math.inf, c=1.2, order=order).step()
    linears = [module for module in model if isinstance(module, nn.Linear)]
    for module, layer in zip(linears, expected, strict=True):
        torch.testing.assert_close(module.weight.detach(), layer.weight, rtol=1e-12, atol=0)


@pytest.mark.parametrize("name", LIVE)
def test_ranges_are_equalized_on_every_graph(name: str) -> None:
    """The function is kept, the largest entry never rises, and the cycles end."""
    model, plan, inputs = build(name)
    before = copy.deepcopy(model)
    stepper = enorm.ENorm(model, plan=plan, p=math.inf)
    energies = [enorm.energy(plan, math.inf)]
    for _ in range(5):
        stepper.step()
        energies.append(enorm.energy(plan, math.inf))
    assert all(new <= old * (1 + 1e-12) for old, new in itertools.pairwise(energies))
    result = enorm.balance_(model, plan, p=math.inf, tol=1e-9)
    assert result.converged
    assert enorm.residual(plan, math.inf) < 1e-8
    torch.testing.assert_close(model(inputs), before(inputs), rtol=1e-10, atol=1e-12)


def test_ranges_meet_between_two_layers() -> None:
    """Nagel et al. 2019, eq. 10: both ranges become the root of their product."""
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)).double()
    first, last = (model.get_parameter(f"{name}.weight").detach() for name in (0, 2))
    root = (first.abs().amax(1) * last.abs().amax(0)).sqrt()
    enorm.balance_(model, p=math.inf)
    torch.testing.assert_close(first.abs().amax(1), root)
    torch.testing.assert_close(last.abs().amax(0), root)


def test_coefficients_by_layer_equal_the_powers_of_one_number() -> None:
    models = [CHAIN.build(), CHAIN.build()]
    plan = enorm.trace(models[1])
    by_layer = {layer.module: 1.2 ** (plan.depth - layer.depth) for layer in plan.layers}
    assert enorm.energy(models[0], 3.0, 1.2) == pytest.approx(enorm.energy(plan, 3.0, by_layer))
    enorm.balance_(models[0], p=3.0, c=1.2)
    enorm.balance_(models[1], plan, p=3.0, c=by_layer)
    for one, other in zip(models[0].parameters(), models[1].parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-8, atol=0)


def test_a_layer_that_counts_more_gets_smaller() -> None:
    """All others count 1; a stepper takes the same coefficients."""
    models = [CHAIN.build(), CHAIN.build()]
    enorm.balance_(models[0])
    enorm.balance_(models[1], c={"4": 3.0})
    norms = [model.get_parameter("4.weight").norm().item() for model in models]
    assert norms[1] < norms[0]
    stepper = enorm.ENorm(models[1], c={"4": 3.0})
    stepper.step()
    assert max(one.abs().amax().item() for one in stepper.log2_scales) < 1e-6
