"""Newton's method on the scale vectors, by block Cholesky over groups.

With ``t = p log d`` and ``B_k[i, j] = c_k M_k[i, j] exp(t_i − t_j)`` the energy is ``Σ B``. The
producers of a unit sum to ``P`` (rows of B), its consumers to ``Q`` (columns), so that

    gradient  g = P − Q,    Hessian  H = diag(P + Q) − B − Bᵀ,

with no entry inside a group: for a chain H is block tridiagonal. It is scaled to a unit diagonal,
which for a chain at its minimum leaves eigenvalues ``1 ± cos(π / q)`` whatever the weights.
Source: Stock et al. 2019, §3.3 (the convex energy); Boyd and Vandenberghe 2004, §9.5 (the method).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import cached_property

import torch
from torch import Tensor

from enorm._solve import Problem

# Share of the decrease that the gradient promises which a step must bring (Armijo).
_SUFFICIENT = 1e-4
_HALVINGS = 30


class Newton:
    """Newton steps for one set of weights.

    Args:
        problem: the problem.
        tensors: the parameters by name; they must not change while this object is in use.
    """

    def __init__(self, problem: Problem, tensors: Mapping[str, Tensor]) -> None:
        self._problem = problem
        self._tensors = tensors

    @cached_property
    def _masses(self) -> list[Tensor]:
        """``log2 c_k M_k``: logarithms hold all, and the Hessian is near 1 once it is scaled."""
        return [
            term.masses(self._tensors, self._problem.p, "log").matrix() + term.log2_coefficient
            for term in self._problem.terms
        ]

    def step(self, z: Sequence[Tensor]) -> list[Tensor] | None:
        """``z`` after one step along Newton's direction that lowers the energy; it synchronises.

        Args:
            z: ``log2 d`` per group, ``(size,)`` float64.

        Returns:
            The same after the step; None where there is no such step, for want of precision.
        """
        p, terms = self._problem.p, self._problem.terms
        scaled = [self._scaled(index, [p * vector for vector in z]) for index in range(len(terms))]
        top = max(one.amax().item() for one in scaled)
        if not math.isfinite(top):
            return None
        entries = [torch.exp2(one - top) for one in scaled]
        produced = [torch.zeros_like(vector) for vector in z]
        consumed = [torch.zeros_like(vector) for vector in z]
        for term, b in zip(terms, entries, strict=True):
            if term.rows is not None:
                produced[term.rows] += b.sum(1)
            if term.columns is not None:
                consumed[term.columns] += b.sum(0)
        live = [(a > 0) & (b > 0) for a, b in zip(produced, consumed, strict=True)]
        gradient = [
            torch.where(alive, a - b, 0.0)
            for alive, a, b in zip(live, produced, consumed, strict=True)
        ]
        # Dead units stay where they are: zero rows and columns but for a one on the diagonal.
        inverse_roots = [
            torch.where(alive, (a + b).rsqrt(), 0.0)
            for alive, a, b in zip(live, produced, consumed, strict=True)
        ]
        right = [-g * r for g, r in zip(gradient, inverse_roots, strict=True)]
        solution = solve_blocks(self._hessian(entries, inverse_roots), right)
        if solution is None:
            return None
        direction = [x * r for x, r in zip(solution, inverse_roots, strict=True)]
        slope = sum((g * x).sum().item() for g, x in zip(gradient, direction, strict=True))
        if not slope <= 0:
            return None
        size = 1.0
        for _ in range(_HALVINGS):
            change = self._energy_change(entries, [size * x for x in direction])
            if change <= _SUFFICIENT * size * slope:
                factor = size / (p * math.log(2))
                return [a + factor * b for a, b in zip(z, direction, strict=True)]
            size /= 2
        return None

    def _scaled(self, index: int, t: Sequence[Tensor]) -> Tensor:
        """``log2 B`` of one term."""
        term, scaled = self._problem.terms[index], self._masses[index]
        if term.rows is not None:
            scaled = scaled + t[term.rows][:, None]
        if term.columns is not None:
            scaled = scaled - t[term.columns]
        return scaled

    def _hessian(
        self, entries: Sequence[Tensor], inverse_roots: Sequence[Tensor]
    ) -> dict[tuple[int, int], Tensor]:
        """Blocks ``(row group, column group)``: below the unit diagonal, or to be added to it."""
        blocks: dict[tuple[int, int], Tensor] = {}
        for term, b in zip(self._problem.terms, entries, strict=True):
            if term.rows is None or term.columns is None:
                continue
            low, high = sorted((term.rows, term.columns))
            lower = b if term.rows == high else b.T
            if low == high:
                lower = b + b.T
            block = inverse_roots[high][:, None] * lower * -inverse_roots[low]
            known = blocks.get((high, low))
            blocks[high, low] = block if known is None else known + block
        return blocks

    def _energy_change(self, entries: Sequence[Tensor], x: Sequence[Tensor]) -> float:
        """``Σ B (exp(x_i − x_j) − 1)`` without cancellation: exact for the smallest steps too."""
        total = 0.0
        for term, b in zip(self._problem.terms, entries, strict=True):
            up = None if term.rows is None else torch.expm1(x[term.rows])
            down = None if term.columns is None else torch.expm1(-x[term.columns])
            # exp(x_i − x_j) − 1 = up_i (1 + down_j) + down_j
            if up is not None:
                total += (b.sum(1) if down is None else b @ (1 + down)).dot(up).item()
            if down is not None:
                total += b.sum(0).dot(down).item()
        return total


def solve_blocks(blocks: dict[tuple[int, int], Tensor], right: list[Tensor]) -> list[Tensor] | None:
    """Solve ``(I + D + L + Lᵀ) x = right`` by block Cholesky, with the fill-in that a graph needs.

    Of ``blocks`` those below the diagonal make L, and those on it D.

    None where the matrix is not numerically positive definite.
    """
    count = len(right)
    diagonals = [torch.eye(len(one), dtype=one.dtype, device=one.device) for one in right]
    below: list[list[int]] = [[] for _ in range(count)]
    for row, column in blocks:
        if row == column:
            diagonals[row] += blocks[row, row]
        else:
            below[column].append(row)
    factors: list[Tensor] = []
    rest = list(right)
    for k in range(count):
        factor, info = torch.linalg.cholesky_ex(diagonals[k])
        if info.item():
            return None
        factors.append(factor)
        rest[k] = torch.linalg.solve_triangular(factor, rest[k][:, None], upper=False)[:, 0]
        for i in below[k]:
            # L_ik = A_ik C⁻ᵀ
            blocks[i, k] = torch.linalg.solve_triangular(
                factor.T, blocks[i, k], upper=True, left=False
            )
            rest[i] = rest[i] - blocks[i, k] @ rest[k]
        for i in below[k]:
            for j in below[k]:
                if i == j:
                    diagonals[i].addmm_(blocks[i, k], blocks[i, k].T, alpha=-1)
                elif i > j:
                    update = blocks[i, k] @ blocks[j, k].T
                    if (i, j) in blocks:
                        blocks[i, j] = blocks[i, j] - update
                    else:
                        blocks[i, j] = -update
                        below[j].append(i)
    for k in reversed(range(count)):
        for i in below[k]:
            rest[k] = rest[k] - blocks[i, k].T @ rest[i]
        rest[k] = torch.linalg.solve_triangular(factors[k].T, rest[k][:, None], upper=True)[:, 0]
    return rest if all(bool(x.isfinite().all()) for x in rest) else None
