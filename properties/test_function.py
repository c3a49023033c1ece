"""Rescaling keeps the function: within the rounding bound, or bit for bit with powers of two."""

from __future__ import annotations

import copy
import math

from hypothesis import assume, event, given, target
from torch import nn

import enorm
from properties import oracle, tolerances
from properties.implementation import Order, current, requires
from properties.specs import Hidden, Net
from properties.strategies import (
    ALL_DTYPES,
    BIAS,
    C_FACTORS,
    ORDER,
    ORDERS,
    P_NORMS,
    SOLVERS,
    WIDE_DTYPES,
    C,
    P,
    example_where,
    nets,
)

HALF = Net(inputs=2, hidden=(Hidden(out=2, bias=BIAS),) * 2, dtype="bfloat16", seed=1)


def assert_kept(
    net: Net, before: nn.Module, after: nn.Module, rewrites: int, training: bool = False
) -> None:
    """Fail unless the function of ``after`` is that of ``before``, within what rounding may do."""
    assume(oracle.has_function(net, before, after))
    inputs = net.draw_inputs()
    # A plan made without the inputs' sizes is as good here, and takes half the time.
    plan = enorm.trace(before)
    found = enorm.verify(before, after, inputs, plan=plan, rewrites=rewrites, training=training)
    # A batch may vary so little that its statistics are rounding alone; then nothing is promised.
    assume(not (training and "varies less than rounding" in (found.reason or "")))
    assert found.ratio is not None, oracle.broken(net, f"no bound is known: {found.reason}")
    assert found.bound is not None
    # The bound alone decides here: it is derived, and holds for every draw.
    kept = found.ratio <= 1
    assert kept, oracle.failure(net, "error of the function", found.error, found.bound)
    target(found.ratio, label="error / bound")


@given(nets(dtypes=ALL_DTYPES, dead=False), P_NORMS, C_FACTORS, ORDERS)
def test_cycles_keep_the_function(net: Net, p: float, c: float, order: Order) -> None:
    """Three cycles, each stored in the parameters' own dtype."""
    model = net.build()
    before = copy.deepcopy(model)
    step = current().stepper(model, None, p=p, c=c, order=order, batchnorm="affine")
    for _ in range(3):
        step()
    event(f"dtype {net.dtype}")
    assert_kept(net, before, model, rewrites=3)


@requires(solvers=...)
@given(nets(dtypes=ALL_DTYPES), P_NORMS, C_FACTORS, SOLVERS)
def test_balance_keeps_the_function(net: Net, p: float, c: float, solver: str) -> None:
    """The whole way to the minimum."""
    model = net.build()
    before = copy.deepcopy(model)
    options = {"tol": 1e-8, "max_cycles": 200, "power_of_two": False}
    result = current().balance(model, p=p, c=c, solver=solver, **options)  # type: ignore[arg-type]
    assert_kept(net, before, model, rewrites=result.stored)
    # It says what came out, also of half precision and with dead units. Storing moves each norm.
    assert result.converged or result.cycles >= 200, oracle.broken(net, f"gave up: {result}")
    if result.converged:
        left = oracle.residual(model, p, c)
        rounding = 2 * tolerances.stored_weight(net.torch_dtype, oracle.fan_in(model))
        bound = 1e-8 + rounding
        assert left <= bound, oracle.failure(net, "converged, but the residual", left, bound)


@requires(power_of_two=True)
@given(nets(dtypes=WIDE_DTYPES, max_decades=3), P_NORMS, C_FACTORS)
@example_where("bfloat16" in current().capabilities.dtypes, HALF, P, C)
def test_powers_of_two_keep_every_bit(net: Net, p: float, c: float) -> None:
    """Outputs and, in train mode, batch statistics too are equal bit for bit."""
    model = net.build()
    before = copy.deepcopy(model)
    balance_by_powers_of_two(model, p, c)
    inputs = net.draw_inputs()
    for training in (False, True):
        before.train(training)
        model.train(training)
        error = (before(inputs) - model(inputs)).abs().max().item()
        assert error == 0, oracle.failure(net, f"error with training={training}", error, 0)


@requires(power_of_two=True, dtypes="float64")
def test_powers_of_two_move_something() -> None:
    """The exactness above is not that of doing nothing."""
    net = Net(inputs=3, hidden=(Hidden(out=4, bias=BIAS),) * 2, decades=3, seed=3)
    model = net.build()
    before = model.get_parameter("0.weight").detach().clone()
    energy = oracle.energy(model, P, 1.0)
    balance_by_powers_of_two(model, P, 1.0)
    assert oracle.energy(model, P, 1.0) < 0.5 * energy
    ratios = set((model.get_parameter("0.weight") / before).flatten().tolist())
    assert ratios != {1.0}
    assert all(math.log2(ratio).is_integer() for ratio in ratios)


def balance_by_powers_of_two(model: nn.Sequential, p: float, c: float) -> None:
    """By the first solver that the implementation declares."""
    solver = current().capabilities.solvers[0]
    current().balance(model, p=p, c=c, solver=solver, tol=1e-8, max_cycles=1000, power_of_two=True)


@given(nets(dtypes=ALL_DTYPES, dead=False), C_FACTORS, ORDERS)
def test_train_mode_is_kept_too(net: Net, c: float, order: Order) -> None:
    """A model in train mode stays in it, is rescaled, and computes what it computed of a batch."""
    model = net.build().train()
    before = copy.deepcopy(model)
    current().stepper(model, None, p=P, c=c, order=order, batchnorm="affine")()
    left = [name for name, module in model.named_modules() if not module.training]
    assert not left, oracle.broken(net, f"modules that have left train mode: {left}")
    assert_kept(net, before, model, rewrites=1, training=True)
    expected = oracle.cycle(oracle.chain(before), P, c, order)
    rtol = tolerances.stored_weight(net.torch_dtype, oracle.fan_in(model))
    oracle.assert_same(net, "a cycle in train mode", oracle.chain(model), expected, rtol)


@requires(batchnorm="ignore", dtypes="float64")
def test_ignoring_batchnorm_changes_the_function() -> None:
    """The published rule does not keep the function of a network with BatchNorm."""
    hidden = tuple(
        Hidden(out=4, bias=False, batchnorm=batchnorm) for batchnorm in (True, True, False)
    )
    net = Net(inputs=3, hidden=hidden, seed=3)
    model = net.build()
    before = copy.deepcopy(model)
    current().stepper(model, None, p=P, c=1.0, order=ORDER, batchnorm="ignore")()
    found = enorm.verify(before, model, net.draw_inputs())
    assert found.ok is False
