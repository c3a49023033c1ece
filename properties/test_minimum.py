"""Cycles converge to the unique minimum of a convex problem, wherever they start."""

from __future__ import annotations

import copy
import math

import numpy as np
import pytest
from hypothesis import given
from torch import nn

from properties import oracle
from properties.convex import convex_energy
from properties.implementation import Order, current, requires
from properties.specs import Hidden, Net
from properties.strategies import C_FACTORS, ORDERS, SEEDS, SOLVERS, dtypes_of, exponents, nets

# Exponents for which scipy's problem stays well scaled.
P_NORMS = exponents(2.0, 1.0, 3.0)
LIVE = nets(dtypes=dtypes_of("float64"), dead=False, max_decades=1.0, max_hidden=4)


def assert_at_minimum(
    net: Net, before: nn.Sequential, model: nn.Sequential, p: float, c: float
) -> None:
    """Energy and scales of an independent solver on the log-scale problem."""
    problem = convex_energy(before, p, c)
    if not problem.incidence.shape[1]:
        return
    lowest, z = problem.minimum()
    energy = oracle.energy(model, p, c)
    assert energy == pytest.approx(lowest, rel=1e-10), oracle.failure(net, "energy", energy, lowest)
    # Along its softest direction the energy E + λ/2 δ² hides a δ of sqrt(2 ε E / λ) from scipy.
    ours = oracle.log_scales(before, model)
    softest = np.linalg.eigvalsh(problem.hessian(ours))[0]
    gradient = np.abs(problem.gradient(ours)).max()
    assert gradient <= 1e-8 * lowest * p, oracle.failure(
        net, "gradient", gradient, 1e-8 * lowest * p
    )
    hidden = max(math.sqrt(2 * 1e-11 * lowest / softest), 1e-6)
    distance = np.abs(ours - z).max()
    assert distance <= hidden, oracle.failure(net, "distance in log d", distance, hidden)


@given(LIVE, P_NORMS, C_FACTORS, ORDERS)
def test_cycles_converge_to_scipys_minimum(net: Net, p: float, c: float, order: Order) -> None:
    """Same energy and same scales as an independent solver on the log-scale problem."""
    model = net.build()
    before = copy.deepcopy(model)
    start = oracle.energy(model, p, c)
    problem = convex_energy(model, p, c)
    origin = np.zeros(problem.incidence.shape[1])
    assert problem.value(origin) == pytest.approx(start, rel=1e-12)
    oracle.settle(net, model, p, c, order)
    assert_at_minimum(net, before, model, p, c)


@requires(solvers=...)
@given(LIVE, P_NORMS, C_FACTORS, SOLVERS)
def test_solvers_end_at_scipys_minimum(net: Net, p: float, c: float, solver: str) -> None:
    """The same, by the implementation's own way there."""
    model = net.build()
    before = copy.deepcopy(model)
    options = {"tol": 1e-11, "max_cycles": 20_000, "power_of_two": False}
    result = current().balance(model, p=p, c=c, solver=solver, **options)  # type: ignore[arg-type]
    assert result.converged, oracle.failure(
        net,
        f"not converged after {result.cycles} cycles; residual",
        oracle.residual(model, p, c),
        0,
    )
    assert_at_minimum(net, before, model, p, c)


@given(LIVE, P_NORMS, C_FACTORS, ORDERS, SEEDS)
def test_many_starts_one_minimum(net: Net, p: float, c: float, order: Order, seed: int) -> None:
    """Networks that differ by a rescaling of their balanced part settle at the same weights."""
    generator = np.random.default_rng(seed)
    reference = net.build()
    oracle.settle(net, reference, p, c, order, tol=1e-12)
    for _ in range(3):
        start = net.build()
        oracle.rescale_(start, generator.uniform(-1, 1, oracle.units(start)) * 2 * math.log(10))
        oracle.settle(net, start, p, c, order, tol=1e-12)
        # A residual of 1e-12 per cycle leaves an error of 1e-12 / (1 − cos(π/q)) in log d.
        oracle.assert_same(net, "another start", oracle.chain(start), oracle.chain(reference), 1e-9)


@given(LIVE, P_NORMS, C_FACTORS, ORDERS)
def test_nothing_moves_at_the_minimum(net: Net, p: float, c: float, order: Order) -> None:
    """One more cycle leaves every weight where it is, up to rounding."""
    model = net.build()
    oracle.settle(net, model, p, c, order, tol=1e-13)
    settled = oracle.chain(model)
    current().stepper(model, None, p=p, c=c, order=order, batchnorm="affine")()
    # A scale of 1 ± 1e-13 on each side, and the rounding of as many terms as a norm has.
    rtol = 1e-12 + oracle.fan_in(model) * 2.0**-52
    oracle.assert_same(net, "one more cycle", oracle.chain(model), settled, rtol)


@requires(solvers="sor")
@requires(solvers="cyclic", p=2.0, dtypes="float64")
def test_over_relaxation_pays() -> None:
    """At depth 9 it needs less than a third of the cycles and ends at the same energy."""
    hidden = tuple(Hidden(out=10, bias=False) for _ in range(10))
    net = Net(inputs=10, hidden=hidden, outputs=4, seed=7)
    cycles, energies = {}, {}
    for solver in ("cyclic", "sor"):
        model = net.build()
        result = current().balance(
            model, p=2.0, c=1.0, solver=solver, tol=1e-10, max_cycles=1000, power_of_two=False
        )
        assert result.converged
        cycles[solver], energies[solver] = result.cycles, oracle.energy(model, 2.0, 1.0)
    assert cycles["sor"] < cycles["cyclic"] / 3
    assert energies["sor"] == pytest.approx(energies["cyclic"], rel=1e-12)
