"""The way to the minimum: cycles, over-relaxed cycles or Newton steps until little is left."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal, get_args

from torch import Tensor

from enorm._masses import Precision
from enorm._newton import Newton
from enorm._relax import Relaxation
from enorm._solve import Problem, Scales

Solver = Literal["sor", "cyclic", "jacobi", "newton"]
SOLVERS: tuple[Solver, ...] = get_args(Solver)

# Largest |log d| from which Newton steps need fewer passes than cycles; 1 to 4 are much alike.
_NEAR = 2.0


@dataclass(frozen=True)
class Progress:
    """Where a solve stands.

    Attributes:
        cycle: how many cycles and Newton steps so far.
        residual: the largest ``|log d|`` that the cycle would have applied unrelaxed, or that a
            cycle after the Newton step would.
        newton: whether the last one was a Newton step.
    """

    cycle: int
    residual: float
    newton: bool


Callback = Callable[[Progress], object]


def minimise(
    problem: Problem,
    tensors: Mapping[str, Tensor],
    *,
    solver: Solver,
    tol: float,
    max_cycles: int,
    power_of_two: bool = False,
    callback: Callback | None = None,
) -> tuple[Scales, int, float]:
    """Go on until one more cycle would move no scale by more than ``tol``.

    Starts again with logarithms where float64 is too narrow for the masses.

    Returns:
        The scales, how many cycles and Newton steps led there, and the residual that is left.
    """
    ladder: tuple[Precision, ...] = ("log",) if problem.p == math.inf else ("float64", "log")
    newton = Newton(problem, tensors) if solver == "newton" else None
    for precision in ladder:
        scales = Scales(problem, tensors, precision=precision, power_of_two=power_of_two)
        cycles, remaining, lost = _descend(scales, newton, solver, tol, max_cycles, callback)
        if remaining > tol:
            remaining = scales.residual()
        if not (lost or scales.lost_range()):
            break
    return scales, cycles, remaining


def _descend(
    scales: Scales,
    newton: Newton | None,
    solver: Solver,
    tol: float,
    max_cycles: int,
    callback: Callback | None,
) -> tuple[int, float, bool]:
    # Maxima have no curvature to go by.
    relaxed = solver in ("sor", "newton") and scales.problem.p < math.inf
    relaxation = Relaxation(scales.problem) if relaxed else None
    remaining = last = math.inf
    near = False
    for cycle in range(1, max_cycles + 1):
        stepped = newton.step(scales.scales()) if newton is not None and near else None
        if stepped is not None and scales.move(stepped):
            moved = remaining = scales.residual()
            # Where a step gained nothing, precision or a unit that may not move is in the way.
            near = moved < last
        else:
            stepped = None
            moved = scales.cycle(
                order="jacobi" if solver == "jacobi" else "cyclic",
                omegas=None if relaxation is None else relaxation.omegas,
            )[0].item()
            if relaxation is not None:
                relaxation.observe(scales.steps)
            near = moved <= _NEAR
            # It was measured on the way; only when it is small is the true value worth a pass.
            remaining = scales.residual() if moved <= tol else math.inf
        last = moved
        if callback is not None:
            callback(Progress(cycle, moved, newton=stepped is not None))
        if (lost := scales.lost_range()) or remaining <= tol:
            return cycle, remaining, lost
    return max_cycles, remaining, False
