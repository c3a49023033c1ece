"""The energy never rises, whatever order, exponent and depth factor."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from properties import oracle, tolerances
from properties.implementation import Order, current, requires
from properties.specs import Net
from properties.strategies import ALL_DTYPES, C_FACTORS, ORDERS, P_NORMS, SOLVERS, nets


@given(nets(dtypes=ALL_DTYPES, dead=False), P_NORMS, C_FACTORS, ORDERS)
def test_energy_never_rises_over_cycles(net: Net, p: float, c: float, order: Order) -> None:
    """Cycle by cycle, as a training loop applies them, up to what storing rounds."""
    model = net.build()
    step = current().stepper(model, None, p=p, c=c, order=order, batchnorm="affine")
    weights = sum(parameter.numel() for parameter in model.parameters())
    largest_coefficient = max(1.0, c) ** (p * (len(net.hidden) + 1))
    rise = tolerances.energy(net.torch_dtype, p)
    below = largest_coefficient * tolerances.underflow(net.torch_dtype, p, weights)
    now = oracle.energy(model, p, c)
    for cycle in range(6):
        step()
        then, now = now, oracle.energy(model, p, c)
        text = f"energy after cycle {cycle + 1}, {then:.17g} before it"
        bound = then * (1 + rise) + below
        assert now <= bound, oracle.failure(net, text, now, bound)


@requires(group_updates=True)
@given(nets(), P_NORMS, C_FACTORS)
def test_energy_never_rises_at_any_group_update(net: Net, p: float, c: float) -> None:
    """Each group is an exact minimisation of its own; together they are one cycle."""
    model, whole = net.build(), net.build()
    rise = tolerances.energy(net.torch_dtype, p)
    now = oracle.energy(model, p, c)
    groups = 0
    for _ in current().updates(model, p=p, c=c, batchnorm="affine"):
        then, now = now, oracle.energy(model, p, c)
        text = f"energy after group {groups}, {then:.17g} before it"
        assert now <= then * (1 + rise), oracle.failure(net, text, now, then * (1 + rise))
        groups += 1
    expected = len(oracle.balanced_part(oracle.chain(model))) - 1
    assert groups == expected, oracle.failure(
        net, "updates of a group in a cycle", groups, expected
    )
    current().stepper(whole, None, p=p, c=c, order="cyclic", batchnorm="affine")()
    rtol = tolerances.stored_weight(net.torch_dtype, oracle.fan_in(model), rewrites=2)
    oracle.assert_same(net, "group by group", oracle.chain(model), oracle.chain(whole), rtol)


@requires(solvers=...)
@given(nets(), P_NORMS, C_FACTORS, SOLVERS, st.integers(1, 9))
def test_stopping_early_never_raises_the_energy(
    net: Net, p: float, c: float, solver: str, cycles: int
) -> None:
    """Over-relaxation included: each of its updates stays on the near side of a mirrored point."""
    model = net.build()
    before = oracle.energy(model, p, c)
    start = oracle.chain(model)
    options = {"tol": 0.0, "max_cycles": cycles, "power_of_two": False}
    result = current().balance(model, p=p, c=c, solver=solver, **options)  # type: ignore[arg-type]
    assert result.cycles <= cycles, oracle.failure(net, "cycles", result.cycles, cycles)
    assert result.converged or result.cycles == cycles, oracle.broken(
        net, f"neither converged nor out of its {cycles} cycles: {result}"
    )
    rtol = tolerances.stored_weight(net.torch_dtype, oracle.fan_in(model), result.stored)
    left, near = oracle.residual(model, p, c), 1e-9 + 2 * rtol
    assert left <= near or not result.converged, oracle.failure(
        net,
        f"said to have converged after {result.cycles} of {cycles} cycles; residual",
        left,
        near,
    )
    if solver == "cyclic" and not result.converged:
        expected = start
        for _ in range(cycles):
            expected = oracle.cycle(expected, p, c, "cyclic")
        # Each cycle sees what the one before has rounded.
        rtol = tolerances.stored_weight(net.torch_dtype, oracle.fan_in(model), cycles)
        oracle.assert_same(net, f"{cycles} cycles", oracle.chain(model), expected, rtol)
    bound = before * (1 + tolerances.energy(net.torch_dtype, p, result.stored))
    after = oracle.energy(model, p, c)
    assert after <= bound, oracle.failure(net, f"energy after {cycles} cycles", after, bound)


@requires(power_of_two=True)
@given(nets(), P_NORMS, C_FACTORS)
def test_powers_of_two_converge_without_raising_the_energy(net: Net, p: float, c: float) -> None:
    """Convergence means that no exponent changes any more; a second call then does nothing."""
    model = net.build()
    solver = current().capabilities.solvers[0]
    before = oracle.energy(model, p, c)
    found = []
    for _ in range(2):
        result = current().balance(
            model, p=p, c=c, solver=solver, tol=1e-8, max_cycles=1000, power_of_two=True
        )
        assert result.converged, oracle.broken(net, f"not converged: {result}")
        found.append(oracle.energy(model, p, c))
    # Squares and other powers of exact weights still round when they are summed.
    bound = before * (1 + 1e-12)
    assert found[0] <= bound, oracle.failure(net, "energy", found[0], bound)
    assert found[1] == found[0], oracle.failure(
        net, "energy after a second call", found[1], found[0]
    )
    assert result.cycles == 1, oracle.failure(net, "cycles of a second call", result.cycles, 1)
