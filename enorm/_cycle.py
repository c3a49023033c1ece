"""Cycles in plain arithmetic: what runs after every optimiser step.

Works on ``s = d^p``, one vector per group, without logarithms, guards or a look at dead units:
with masses P of a unit's producers and Q of its consumers the update is ``s = sqrt(Q / P)`` (Stock
et al. 2019, Algorithm 1). All sums and scales are looked at afterwards; where one came near the
ends of the dtype, or is zero, there is no result and :class:`enorm._solve.Scales` has to do it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from enorm._masses import Masses, Precision, Workspace, range_margin
from enorm._sharded import local, rows_of
from enorm._solve import Order, Problem

# Of each group, by term.
Coefficients = Sequence[Mapping[int, float]]
# Coefficients of one group that are further apart, in powers of two, leave too little range.
_WIDEST_COEFFICIENTS = 40.0


class PlainCycles:
    """Cycles over the weights as they are at each call.

    Args:
        problem: the problem.
        tensors: the parameters by name.
        precision: of masses and scales, ``"float32"`` or ``"float64"``.
        cycles: how many a call runs; with one, a chain's masses take turns in one place.
        order: ``"cyclic"`` or ``"jacobi"``.
    """

    def __init__(
        self,
        problem: Problem,
        tensors: Mapping[str, Tensor],
        precision: Precision,
        *,
        cycles: int,
        order: Order,
    ) -> None:
        self._problem = problem
        self._tensors = tensors
        self._precision: Precision = precision
        self._cycles = cycles
        self._jacobi = order == "jacobi"
        self._workspace = Workspace()
        self._masses: dict[int, Masses] = {}
        self._early: dict[int, Tensor] = {}
        self._biases = [tensors[name] for names in problem.biases for name in names]
        self._spread = rows_of(self._biases[0]) if self._biases else None
        self._coefficients = coefficients_of(problem)

    def __call__(self) -> list[Tensor] | None:
        """``log2 d`` per group, ``(size,)`` float64, or None where the precision is too narrow.

        Waits for the device, to see whether it is.
        """
        problem = self._problem
        if self._coefficients is None:
            return None
        # An interrupted call may have left some, of weights as they were then.
        self._masses.clear()
        self._early.clear()
        # Where the scales of a group stand, and one over them; None stands for ones.
        scales: list[Tensor | None] = [None] * len(problem.producers)
        inverses = list(scales)
        sums: list[Tensor] = []
        for _ in range(self._cycles):
            s, r = (list(scales), list(inverses)) if self._jacobi else (scales, inverses)
            for group, coefficients in enumerate(self._coefficients):
                produced = [self._row_sums(t, r) for t in problem.producers[group]]
                consumed = [
                    self._mass(t).column_sums(at(s, problem.terms[t].rows))
                    for t in problem.consumers[group]
                ]
                sums += [*produced, *consumed]
                p_mass = weighted(produced, [coefficients[t] for t in problem.producers[group]])
                q_mass = weighted(consumed, [coefficients[t] for t in problem.consumers[group]])
                scale = torch.div(q_mass, p_mass).sqrt_()
                if problem.coupled[group]:
                    current = s[group]
                    scale = (scale if current is None else scale * current).sqrt()
                scales[group], inverses[group] = scale, scale.reciprocal()
                if self._cycles == 1:
                    self._finish(group, r)
        self._release(list(self._masses))
        return self._checked(sums, [scale for scale in scales if scale is not None])

    def _row_sums(self, index: int, inverses: Sequence[Tensor | None]) -> Tensor:
        if (known := self._early.pop(index, None)) is not None:
            return known
        return self._mass(index).row_sums(at(inverses, self._problem.terms[index].columns))

    def _finish(self, group: int, inverses: Sequence[Tensor | None]) -> None:
        """Let go of masses that no later group needs, as early as can be.

        What a later group wants of a weight divided by this one are its row sums, known now: so the
        next weight's masses can take the same place, which is in the caches still.
        """
        for index in self._problem.consumers[group]:
            rows = self._problem.terms[index].rows
            if rows is not None and rows > group:
                self._early[index] = self._row_sums(index, inverses)
                self._release([index])
        self._release(self._problem.last_uses[group])

    def _mass(self, index: int) -> Masses:
        if index not in self._masses:
            term, p = self._problem.terms[index], self._problem.p
            once = self._cycles == 1
            self._masses[index] = term.masses(
                self._tensors, p, self._precision, self._workspace, once=once
            )
        return self._masses[index]

    def _release(self, terms: Sequence[int]) -> None:
        for index in terms:
            if (masses := self._masses.pop(index, None)) is not None:
                masses.release()

    def _checked(self, sums: Sequence[Tensor], scales: Sequence[Tensor]) -> list[Tensor] | None:
        together = torch.cat(list(scales))
        extremes = (*torch.aminmax(together), *torch.aminmax(torch.cat(list(sums))))
        least, most, low, high = (one.item() for one in extremes)
        grown = 0.0
        if self._biases and most >= 0:
            limit = min(torch.finfo(bias.dtype).max for bias in self._biases) / 2
            grown = self._largest_bias() * max(1.0, most ** (1 / self._problem.p)) / limit
        if not trusted(together.dtype, least, most, low, high, grown):
            return None
        z = together.double().log2_().div_(self._problem.p)
        return list(z.split([len(scale) for scale in scales]))

    def _largest_bias(self) -> float:
        largest = torch.cat([local(bias).detach().abs() for bias in self._biases]).amax()
        if self._spread is not None and self._spread.group is not None:
            largest = self._spread.largest(largest)
        return largest.item()


def coefficients_of(problem: Problem) -> Coefficients | None:
    """Exponents of two for the terms of each group; None where they leave too little range."""
    found = []
    for producers, consumers in zip(problem.producers, problem.consumers, strict=True):
        # Only ratios matter within a group: its first producer counts once.
        first = problem.terms[producers[0]].log2_coefficient
        members = (*producers, *consumers)
        found.append({t: problem.terms[t].log2_coefficient - first for t in members})
    if any(abs(x) > _WIDEST_COEFFICIENTS for group in found for x in group.values()):
        return None
    return found


def trusted(
    dtype: torch.dtype, least: float, most: float, low: float, high: float, grown: float
) -> bool:
    """Whether a cycle's plain arithmetic stayed within ``dtype``; NaN compares false.

    Args:
        dtype: of sums and scales.
        least: the smallest scale, to the power p.
        most: the largest.
        low: the smallest sum.
        high: the largest.
        grown: the largest bias that a scale may make, as a share of half of its dtype's maximum.
    """
    info = torch.finfo(dtype)
    # A mass below the smallest normal number may have vanished, and a scale of at most `reach`
    # may have weighted it.
    reach = info.smallest_normal ** (-1 / 3)
    margin = range_margin(dtype)
    return (
        least > 1 / reach
        and most < reach
        and low > info.smallest_normal * margin * reach
        and high < info.max / margin
        and grown <= 1
    )


def at(vectors: Sequence[Tensor | None], group: int | None) -> Tensor | None:
    """A group's vector; None stands for ones."""
    return None if group is None else vectors[group]


def weighted(parts: Sequence[Tensor], log2_coefficients: Sequence[float]) -> Tensor:
    """``Σ 2^coefficient · part``."""
    total: Tensor | None = None
    for part, log2_coefficient in zip(parts, log2_coefficients, strict=True):
        if total is not None:
            total = total.add(part, alpha=2.0**log2_coefficient)
        else:
            total = part if log2_coefficient == 0 else part * 2.0**log2_coefficient
    assert total is not None
    return total
