"""How far a correct implementation may be off, derived from dtype and size, in one place.

The bound for a network's function is :func:`enorm.error_bound`; its derivation stands there.
"""

from __future__ import annotations

import torch


def unit_roundoff(dtype: torch.dtype) -> float:
    """u: the largest relative error of one rounding to nearest."""
    return torch.finfo(dtype).eps / 2


def stored_weight(
    dtype: torch.dtype, fan_in: int, rewrites: int = 1, log_range: float = 0.0
) -> float:
    """Largest relative error of a rescaled weight against exact arithmetic.

    Storing a weight rounds two scales and two products: ``4u``. The scales themselves are square
    roots of ratios of norms; a sum of n terms, each a rounded power, in arithmetic with unit
    roundoff at most ``v = max(u, u₃₂)`` is off by ``(n + 2) v`` at most and the half-power of a
    ratio of two of them by as much again. Later groups see the errors of earlier ones through
    sums of positive terms, which pass relative errors on without amplifying them: with one such
    contribution from either side, ``2 (n + 2) v`` per group visited. ``fan_in`` is the sum of n
    over all groups. Both factors of a weight carry that error.

    Who holds scales as logarithms, in float64 at least, rounds those as well: with ``log_range``
    the largest ``|ln w|`` of a weight, before or after, half of that for each of the two norms and
    twice for ``ln d`` itself, in each of the two factors: ``6 log_range 2^-53``. It matters where
    a unit's weights are rounding alone, some ``1e-60``.
    """
    u = unit_roundoff(dtype)
    v = min(max(u, 2.0**-53), 2.0**-24)
    return rewrites * (4 * u + 2 * 2 * (fan_in + 2) * v + 6 * log_range * 2.0**-53)


def energy(dtype: torch.dtype, p: float, rewrites: int = 1) -> float:
    """Largest relative rise of the energy that rounding alone explains.

    Each stored weight is off by at most ``4u``, so each ``|w|^p`` by ``(1 + 4u)^p − 1``. An error
    of the scales themselves is of second order, for they sit at a minimum; the first term leaves
    room for it.
    """
    return float((1 + 4 * rewrites * max(unit_roundoff(dtype), 2.0**-50)) ** p - 1)


def underflow(dtype: torch.dtype, p: float, weights: int) -> float:
    """Largest absolute rise of the energy through weights that round to a subnormal number."""
    info = torch.finfo(dtype)
    return float(weights * (info.smallest_normal * info.eps) ** p)
