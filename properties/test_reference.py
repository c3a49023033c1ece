"""Each cycle equals Algorithm 1 in plain loops, in order and value."""

from __future__ import annotations

import torch
from hypothesis import example, given
from hypothesis import strategies as st

from properties import oracle, tolerances
from properties.implementation import Order, Rule, current, requires
from properties.specs import Hidden, Net
from properties.strategies import (
    ALL_DTYPES,
    BIAS,
    C_FACTORS,
    ORDER,
    ORDERS,
    P_NORMS,
    C,
    P,
    example_where,
    nets,
)

# Tiles and tails of the widest machine words have to be right too, and those of a block of threads
# or of a sum that is taken in parts.
WIDE = Net(
    inputs=3,
    hidden=tuple(Hidden(out=units, bias=BIAS) for units in (65, 130, 1030)),
    dtype="float32",
)


def compare(net: Net, p: float, c: float, order: Order, batchnorm: Rule, cycles: int) -> None:
    """The implementation's cycles against the reference's, weight by weight."""
    model = net.build()
    expected = oracle.chain(model, batchnorm)
    step = current().stepper(model, None, p=p, c=c, order=order, batchnorm=batchnorm)
    for _ in range(cycles):
        expected = oracle.cycle(expected, p, c, order)
        step()
    rtol = tolerances.stored_weight(net.torch_dtype, oracle.fan_in(model), rewrites=cycles)
    found = oracle.chain(model, batchnorm)
    oracle.assert_same(net, f"after {cycles} cycles", found, expected, rtol)


@given(nets(dtypes=ALL_DTYPES, dead=False), P_NORMS, C_FACTORS, ORDERS, st.integers(1, 3))
@example_where("float32" in current().capabilities.dtypes, WIDE, P, C, ORDER, 1)
def test_cycles_equal_algorithm_1(net: Net, p: float, c: float, order: Order, cycles: int) -> None:
    """Weights, biases and BatchNorm's parameters, after one to three cycles."""
    compare(net, p, c, order, "affine", cycles)


@requires(batchnorm="ignore")
@given(nets(dead=False, batchnorm=True), P_NORMS, C_FACTORS, ORDERS, st.integers(1, 3))
def test_ignoring_batchnorm_is_the_published_rule(
    net: Net, p: float, c: float, order: Order, cycles: int
) -> None:
    """Algorithm 1 as if there were no BatchNorm, whose own parameters and statistics stay."""
    model = net.build()
    kept = {
        name: value.clone()
        for index, module in enumerate(model)
        if isinstance(module, torch.nn.modules.batchnorm._BatchNorm)
        for name, value in module.state_dict(prefix=f"{index}.").items()
    }
    current().stepper(model, None, p=p, c=c, order=order, batchnorm="ignore")()
    for name, value in kept.items():
        assert torch.equal(model.state_dict()[name], value), f"{name}\n{net!r}"
    compare(net, p, c, order, "ignore", cycles)


@requires(p=2.0, dtypes="float32")
@given(st.integers(0, 1000), ORDERS)
@example(0, ORDER)
def test_extreme_scales_equal_the_reference(seed: int, order: Order) -> None:
    """Weights from 1e-30 to 1e30 in float32, whose squares float32 cannot hold."""
    hidden = tuple(Hidden(out=5, bias=False) for _ in range(3))
    net = Net(inputs=4, hidden=hidden, decades=30, dtype="float32", seed=seed)
    p = 2.0
    model = net.build()
    expected = oracle.cycle(oracle.chain(model), p, 1.0, order)
    current().stepper(model, None, p=p, c=1.0, order=order, batchnorm="affine")()
    rtol = tolerances.stored_weight(net.torch_dtype, oracle.fan_in(model))
    oracle.assert_same(net, "after a cycle", oracle.chain(model), expected, rtol)
