"""How fast cycles converge: the rate that the Hessian predicts, and for chains cos²(π/q).

Near the minimum z* a cycle is linear: a displacement u of z becomes ``G u`` with
``G = I − M⁻¹ H``, where H is the energy's Hessian and M its lower triangle, blocks in sweep order
(Gauss–Seidel), or its diagonal (Jacobi). The spectral radius of G is the rate.
"""

from __future__ import annotations

import copy
import math

import numpy as np
import pytest
from hypothesis import given
from numpy.typing import NDArray

from properties import oracle
from properties.convex import convex_energy
from properties.implementation import Order, current, requires
from properties.specs import Hidden, Net
from properties.strategies import C_FACTORS, ORDERS, SEEDS, dtypes_of, exponents, nets

Array = NDArray[np.float64]

# So small that second-order terms are 1e-4 of it, so large that rounding is 1e-11 of it.
STEP = 1e-4
P_NORMS = exponents(2.0, 1.0, 3.0)
LIVE = nets(dtypes=dtypes_of("float64"), dead=False, max_decades=1.0, max_hidden=4)
CHAINS = nets(
    dtypes=dtypes_of("float64"), dead=False, batchnorm=False, max_decades=1.0, max_hidden=5
)


def iteration_matrix(hessian: Array, order: Order) -> Array:
    """G of a cycle in that order."""
    split = np.tril(hessian) if order == "cyclic" else np.diag(np.diag(hessian))
    return np.eye(len(hessian)) - np.linalg.solve(split, hessian)


def one_cycle(net: Net, p: float, c: float, order: Order, direction: Array) -> Array:
    """Where one cycle of the implementation takes ``direction`` near the minimum."""
    settled = net.build()
    oracle.settle(net, settled, p, c, order, tol=1e-12)
    displaced = copy.deepcopy(settled)
    oracle.rescale_(displaced, STEP * direction)
    current().stepper(displaced, None, p=p, c=c, order=order, batchnorm="affine")()
    return oracle.log_scales(settled, displaced) / STEP


def settled_hessian(net: Net, p: float, c: float, order: Order) -> Array:
    model = net.build()
    oracle.settle(net, model, p, c, order, tol=1e-12)
    return convex_energy(model, p, c).hessian(np.zeros(oracle.units(model)))


def error_of_linearization(net: Net, p: float) -> float:
    """Of an image of a direction of maximum norm 1.

    The update ``log(Q/P) / 2p`` of a unit is 1-Lipschitz in its neighbours' z, and its second
    derivative along a direction is a difference of two variances over ``2p``, each at most p²: an
    error of ``p STEP / 2`` per group, which passes through later groups unamplified. Settling
    leaves 1e-12 / (1 − cos(π/q)) in z and rounding less.
    """
    groups = len(net.hidden)
    return groups * p * STEP / 2 + 1e-12 / (1 - math.cos(math.pi / (groups + 1))) / STEP


@given(LIVE, P_NORMS, C_FACTORS, ORDERS, SEEDS)
def test_a_cycle_contracts_as_the_hessian_says(
    net: Net, p: float, c: float, order: Order, seed: int
) -> None:
    """Every displacement from the minimum, with BatchNorm and without, in either order."""
    hessian = settled_hessian(net, p, c, order)
    if not hessian.size:
        return
    direction = np.random.default_rng(seed).uniform(-1, 1, len(hessian))
    predicted = iteration_matrix(hessian, order) @ direction
    error = np.abs(one_cycle(net, p, c, order, direction) - predicted).max()
    bound = error_of_linearization(net, p)
    assert error <= bound, oracle.failure(net, "|cycle − G u|", error, bound)


@given(CHAINS, P_NORMS, C_FACTORS, ORDERS)
def test_every_chain_contracts_by_youngs_rate(net: Net, p: float, c: float, order: Order) -> None:
    """``cos²(π/q)`` per cycle in Algorithm 1's order, ``cos(π/q)`` in Jacobi's; q weights."""
    hessian = settled_hessian(net, p, c, order)
    if not hessian.size:
        return
    values, vectors = np.linalg.eig(iteration_matrix(hessian, order))
    slowest = vectors[:, np.argmax(values.real)].real
    slowest /= np.abs(slowest).max()
    q = len(oracle.balanced_part(oracle.chain(net.build())))
    rate = math.cos(math.pi / q) ** (2 if order == "cyclic" else 1)
    error = np.abs(one_cycle(net, p, c, order, slowest) - rate * slowest).max()
    # The eigenvector is known to sqrt(ε): for q = 2 it is one of many with eigenvalue zero.
    bound = error_of_linearization(net, p) + 1e-7
    assert error <= bound, oracle.failure(net, f"|cycle − {rate:.4f} u|", error, bound)


@requires(p=2.0, dtypes="float64")
@pytest.mark.parametrize("order", current().capabilities.orders)
@pytest.mark.parametrize("depth", [1, 2, 4, 9])
def test_linear_rate_is_youngs(depth: int, order: Order) -> None:
    """The same rate, read off the residuals of a whole run from He initialisation."""
    hidden = tuple(Hidden(out=8, bias=False) for _ in range(depth + 1))
    net = Net(inputs=8, hidden=hidden, outputs=4, seed=11)
    model = net.build()
    q = len(oracle.balanced_part(oracle.chain(model)))
    predicted = math.cos(math.pi / q) ** (2 if order == "cyclic" else 1)
    step = current().stepper(model, None, p=2.0, c=1.0, order=order, batchnorm="affine")
    residuals: list[float] = []
    while (now := oracle.residual(model, 2.0, 1.0)) > 1e-9:
        residuals.append(now)
        # From He initialisation 600 Jacobi cycles are enough at depth 9.
        assert len(residuals) < 2000, oracle.failure(net, "residual after 2000 cycles", now, 1e-9)
        step()
    tail = residuals[len(residuals) // 2 :]
    measured = (tail[-1] / tail[0]) ** (1 / max(1, len(tail) - 1)) if len(tail) > 1 else 0.0
    # The second mode still shows, by a factor that shrinks along the tail.
    error = abs(measured - predicted)
    assert error <= 0.02, oracle.failure(net, f"|rate − {predicted:.4f}|", error, 0.02)
