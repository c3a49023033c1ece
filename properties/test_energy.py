"""The energy never rises from cycle to cycle, whatever order, exponent and depth factor."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

import enorm
from properties import tolerances
from properties.specs import Net
from properties.strategies import ALL_DTYPES, C_FACTORS, P_NORMS, nets


@given(nets(dtypes=ALL_DTYPES), P_NORMS, C_FACTORS, st.sampled_from(["cyclic", "jacobi"]))
def test_energy_never_rises_over_cycles(net: Net, p: float, c: float, order: str) -> None:
    """Cycle by cycle, as a training loop applies them, up to what storing rounds."""
    model = net.build()
    stepper = enorm.ENorm(model, p=p, c=c, order=order)  # type: ignore[arg-type]
    weights = sum(parameter.numel() for parameter in model.parameters())
    largest_coefficient = max(1.0, c) ** (p * stepper.plan.depth)
    rise = tolerances.energy(net.torch_dtype, p)
    below = largest_coefficient * tolerances.underflow(net.torch_dtype, p, weights)
    now = enorm.energy(model, p, c)
    for cycle in range(6):
        stepper.step()
        then, now = now, enorm.energy(model, p, c)
        assert now <= then * (1 + rise) + below, (
            f"{net!r}\ncycle {cycle}: {then} -> {now}, allowed relative rise {rise}"
        )


@given(nets(), P_NORMS, C_FACTORS, st.sampled_from(["sor", "cyclic", "jacobi"]), st.integers(1, 9))
def test_stopping_early_never_raises_the_energy(
    net: Net, p: float, c: float, solver: str, cycles: int
) -> None:
    """Over-relaxation included: each of its updates stays on the near side of a mirrored point."""
    model = net.build()
    options = {"solver": solver, "max_cycles": cycles, "tol": 0.0}
    result = enorm.balance_(model, p=p, c=c, **options)  # type: ignore[arg-type]
    assert result.cycles <= cycles
    assert result.energy_after <= result.energy_before * (
        1 + tolerances.energy(net.torch_dtype, p)
    ), repr(net)


@given(nets(), P_NORMS, C_FACTORS)
def test_powers_of_two_converge_without_raising_the_energy(net: Net, p: float, c: float) -> None:
    """Convergence means that no exponent changes any more; a second call then does nothing."""
    model = net.build()
    result = enorm.balance_(model, p=p, c=c, power_of_two=True)
    assert result.converged
    assert result.residual == 0
    # Squares and other powers of exact weights still round when they are summed.
    assert result.energy_after <= result.energy_before * (1 + 1e-12), repr(net)
    again = enorm.balance_(model, p=p, c=c, power_of_two=True)
    assert again.energy_after == again.energy_before
    assert again.cycles == 1
