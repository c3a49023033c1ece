"""Cycles converge to the unique minimum of a convex problem, wherever they start."""

from __future__ import annotations

import copy
import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import enorm
from properties.convex import convex_energy
from properties.specs import Hidden, Net, weighted
from properties.strategies import C_FACTORS, SEEDS, nets

# Exponents for which scipy's problem stays well scaled.
P_NORMS = st.sampled_from([2.0, 1.0, 3.0])
LIVE = nets(dtypes=st.just("float64"), dead=False, max_decades=1.0, max_hidden=4)


def log_scales(before: nn.Sequential, after: nn.Sequential) -> np.ndarray:
    """``log d`` of every hidden unit, read off the largest entry of its producer.

    An entry ``W[i, j]`` has been multiplied by ``d_k[i]`` and divided by the scale of the unit in
    front of column j.
    """
    found: list[list[float]] = []
    pairs = zip(weighted(before)[:-1], weighted(after)[:-1], strict=True)
    for (old, old_norm), (new, new_norm) in pairs:
        in_front = [0.0] if old_norm is not None or not found else found[-1]
        rows = (old if old_norm is None else old_norm).weight.detach()
        moved = (new if new_norm is None else new_norm).weight.detach()
        found.append([])
        for row, scaled in zip(rows, moved, strict=True):
            top = int(row.abs().flatten().argmax())
            ratio = float(scaled.flatten()[top] / row.flatten()[top])
            # Columns of one unit stand side by side, kernel positions included.
            unit = top * len(in_front) // row.numel()
            found[-1].append(math.log(ratio) + in_front[unit])
    return np.array([z for layer in found for z in layer])


@given(LIVE, P_NORMS, C_FACTORS, st.sampled_from(["sor", "cyclic", "jacobi"]))
def test_minimum_is_scipys(net: Net, p: float, c: float, solver: str) -> None:
    """Same energy and same scales as an independent solver on the log-scale problem."""
    model = net.build()
    before = copy.deepcopy(model)
    problem = convex_energy(model, p, c)
    start = np.zeros(problem.incidence.shape[1])
    assert problem.value(start) == pytest.approx(enorm.energy(model, p, c), rel=1e-12)
    lowest, z = problem.minimum()
    result = enorm.balance_(model, p=p, c=c, solver=solver, tol=1e-11, max_cycles=20_000)  # type: ignore[arg-type]
    assert result.converged, repr(net)
    assert result.energy_after == pytest.approx(lowest, rel=1e-10), repr(net)
    # Along its softest direction the energy E + λ/2 δ² hides a δ of sqrt(2 ε E / λ) from scipy.
    ours = log_scales(before, model)
    softest = np.linalg.eigvalsh(problem.hessian(ours))[0]
    gradient = np.abs(problem.gradient(ours)).max()
    assert gradient <= 1e-8 * lowest * p, repr(net)
    hidden = math.sqrt(2 * 1e-11 * lowest / softest)
    assert np.abs(ours - z).max() <= max(hidden, 1e-6), repr(net)


@given(LIVE, P_NORMS, C_FACTORS, SEEDS)
def test_many_starts_one_minimum(net: Net, p: float, c: float, seed: int) -> None:
    """Networks that differ by a rescaling balance to the same weights."""
    generator = torch.Generator().manual_seed(seed)
    reference = net.build()
    enorm.balance_(reference, p=p, c=c, tol=1e-12, max_cycles=20_000)
    for _ in range(3):
        start = net.build()
        rescale_(start, generator, decades=3)
        enorm.balance_(start, p=p, c=c, tol=1e-12, max_cycles=20_000)
        for (name, one), other in zip(
            reference.named_parameters(), start.parameters(), strict=True
        ):
            # A residual of 1e-12 per cycle leaves an error of 1e-12 / (1 − cos²(π/q)) in log d.
            torch.testing.assert_close(one, other, rtol=1e-9, atol=0, msg=f"{name}: {net!r}")


def rescale_(model: nn.Sequential, generator: torch.Generator, decades: float) -> None:
    """Multiply every hidden unit by its own ``10^u``, u uniform on ±decades, and undo it behind."""
    layers = weighted(model)
    with torch.no_grad():
        for (producer, norm), (consumer, _) in itertools.pairwise(layers):
            units = len(producer.weight)
            uniform = torch.rand(units, generator=generator, dtype=torch.float64)
            d = 10 ** (decades * (2 * uniform - 1))
            made = producer if norm is None else norm
            made.weight.mul_(d.view(-1, *[1] * (made.weight.dim() - 1)))
            if made.bias is not None:
                made.bias.mul_(d)
            block = consumer.weight.shape[1] // units
            columns = d.repeat_interleave(block)
            consumer.weight.div_(columns.view(-1, *[1] * (consumer.weight.dim() - 2)))


@given(LIVE, P_NORMS, C_FACTORS)
def test_residual_is_what_one_more_cycle_applies(net: Net, p: float, c: float) -> None:
    """And at the minimum it is zero, and one more cycle changes nothing."""
    model = net.build()
    expected = enorm.residual(model, p, c)
    before = copy.deepcopy(model)
    enorm.ENorm(model, p=p, c=c).step()
    assert np.abs(log_scales(before, model)).max() == pytest.approx(expected, abs=1e-12)
    enorm.balance_(model, p=p, c=c, tol=1e-13, max_cycles=20_000)
    assert enorm.residual(model, p, c) < 1e-11


@pytest.mark.parametrize("depth", [1, 2, 4, 9])
def test_linear_rate_is_cos_squared(depth: int) -> None:
    """Algorithm 1 contracts by ``cos²(π/q)`` per cycle, q = depth + 2 weights."""
    hidden = tuple(Hidden(out=8, bias=False) for _ in range(depth + 1))
    net = Net(inputs=8, hidden=hidden, outputs=4, seed=11)
    model = net.build()
    plan = enorm.trace(model)
    predicted = math.cos(math.pi / (depth + 2)) ** 2
    residuals = []
    stepper = enorm.ENorm(model, plan=plan)
    while (now := enorm.residual(plan)) > 1e-10:
        residuals.append(now)
        stepper.step()
    tail = residuals[len(residuals) // 2 :]
    measured = (tail[-1] / tail[0]) ** (1 / (len(tail) - 1))
    # The second mode, cos²(2π/q), still shows by a factor that shrinks along the tail.
    assert measured == pytest.approx(predicted, abs=0.02)


def test_over_relaxation_pays() -> None:
    """At depth 9 it needs less than a third of the cycles and ends at the same energy."""
    hidden = tuple(Hidden(out=10, bias=False) for _ in range(10))
    net = Net(inputs=10, hidden=hidden, outputs=4, seed=7)
    plain, relaxed = net.build(), net.build()
    slow = enorm.balance_(plain, solver="cyclic", tol=1e-10)
    fast = enorm.balance_(relaxed, solver="sor", tol=1e-10)
    assert slow.converged
    assert fast.converged
    assert fast.cycles < slow.cycles / 3
    assert fast.energy_after == pytest.approx(slow.energy_after, rel=1e-12)
