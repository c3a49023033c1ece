"""One cycle in plain arithmetic on the weights themselves: what runs after every optimiser step.

Algorithm 1 as it is printed (Stock et al. 2019): with masses P of a unit's producers and Q of its
consumers, as they are now, ``d = (Q / P)^(1 / 2p)`` multiplies the former and divides the latter,
group after group. So a weight is summed, divided and multiplied while it is in the caches. No
logarithms, no guards, no look at dead units: a group's sums are looked at before its scales are
written, and where they come near the ends of the dtype, or are zero, the cycle stops in front of
that group, for :class:`enorm._solve.Scales` to go on from there.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from enorm._apply import NARROW, Target, has_room
from enorm._layout import along_columns, along_rows, flattened
from enorm._masses import range_margin
from enorm._sharded import is_sharded
from enorm._solve import Order, Problem, Term

# Of each group, by term.
Coefficients = Sequence[Mapping[int, float]]
# Coefficients of one group that are further apart, in powers of two, leave too little range.
_WIDEST_COEFFICIENTS = 40.0
# Smaller matrices are summed by one thread.
_PARALLEL = 32_768


class PlainCycle:
    """A cycle over the weights as they are at each call, which it changes.

    Args:
        problem: the problem; see :meth:`fits`.
        targets: the parameters that scale.
        tensors: all parameters by name.
    """

    def __init__(
        self, problem: Problem, targets: Sequence[Target], tensors: Mapping[str, Tensor]
    ) -> None:
        self._problem = problem
        self._targets = targets
        self._tensors = [tensors[target.name] for target in targets]
        self._all = tensors
        self._dtype = self._tensors[0].dtype
        self._biases = [tensors[name] for names in problem.biases for name in names]
        # With one group on both sides an entry has no part in any sum, or none that shows its size.
        self._uncounted = [
            tensors[target.name]
            for target in targets
            if target.rows in {part.group for part in target.columns} - {None}
        ]
        self._coefficients = coefficients_of(problem)
        # Where the parameters were when the views were made.
        self._places: list[tuple[int, tuple[int, ...]]] = []
        self._groups: list[_Group] = []

    @staticmethod
    def fits(problem: Problem, tensors: Mapping[str, Tensor], *, cycles: int, order: Order) -> bool:
        """Whether this is a way: one cycle in order, of whole weights, each rounded twice."""
        dtypes = {one.dtype for one in tensors.values()}
        return (
            (cycles, order) == (1, "cyclic")
            and 1 <= problem.p < math.inf
            and dtypes in ({torch.float32}, {torch.float64})
            and not any(is_sharded(one) for one in tensors.values())
            and coefficients_of(problem) is not None
        )

    def __call__(self) -> list[Tensor]:
        """``log2 d``, ``(size,)`` float64, of the groups up to the first that it could not do.

        Waits for the device, to see whether it can.
        """
        places = [(one.data_ptr(), one.stride()) for one in self._tensors]
        if places != self._places:
            self._groups = self._views()
            self._places = places
        found: list[Tensor] = []
        if not self._uncounted_have_room():
            return found
        exponent = 0.5 / self._problem.p
        for group in self._groups:
            p_mass = weighted([one.row_sums() for one in group.producers], group.of_producers)
            q_mass = weighted([one.column_sums() for one in group.consumers], group.of_consumers)
            low, high = torch.aminmax(torch.cat([p_mass, q_mass]))
            if not holds(self._dtype, low.item(), high.item(), self._problem.p):
                break
            d = torch.div(q_mass, p_mass).pow_(exponent / 2 if group.is_coupled else exponent)
            for view, groups in group.rows:
                view.mul_(along_rows(d, view, groups))
            inverse = d.reciprocal()
            for view, groups, times in group.columns:
                factor = inverse if times == 1 else inverse.repeat_interleave(times)
                view.mul_(along_columns(factor, view, groups))
            found.append(d)
        if not found:
            return found
        z = torch.cat(found).double().log2_()
        return list(z.split([len(d) for d in found]))

    def _uncounted_have_room(self) -> bool:
        """Whether the widest scale keeps finite what no sum looks at."""
        if self._biases and not has_room(torch.cat([one.detach() for one in self._biases])):
            return False
        return all(has_room(weight) for weight in self._uncounted)

    @torch.inference_mode(False)
    def _views(self) -> list[_Group]:
        """What each group looks at and writes, in the memory of the parameters."""
        problem = self._problem
        assert self._coefficients is not None
        sums = [_Sums(term, self._all[term.weight].detach(), problem.p) for term in problem.terms]
        largest = max(one.buffer_size for one in sums)
        buffer = torch.empty(largest, dtype=self._dtype, device=self._tensors[0].device)
        for one in sums:
            one.buffer = buffer
        groups = [
            _Group(
                [sums[t] for t in producers],
                [sums[t] for t in consumers],
                [coefficients[t] for t in producers],
                [coefficients[t] for t in consumers],
                is_coupled,
            )
            for producers, consumers, coefficients, is_coupled in zip(
                problem.producers,
                problem.consumers,
                self._coefficients,
                problem.coupled,
                strict=True,
            )
        ]
        for target, tensor in zip(self._targets, self._tensors, strict=True):
            view, entries = flattened(target.view(tensor.detach()), target.groups)
            if target.rows is not None:
                groups[target.rows].rows.append((view, target.groups))
            start = 0
            for part in target.columns:
                length = part.length * entries
                # Grouped convolutions are divided as a whole.
                piece = view if target.groups > 1 else view.narrow(1, start, length)
                start += length
                if part.group is not None:
                    times = part.block * entries
                    groups[part.group].columns.append((piece, target.groups, times))
        return groups


@dataclass
class _Group:
    """What one group sums and writes.

    Attributes:
        producers: weights that it multiplies.
        consumers: weights that it divides.
        of_producers: their coefficients, as exponents of two.
        of_consumers: likewise.
        is_coupled: whether its units are coupled to each other.
        rows: views to multiply, with their number of convolution groups.
        columns: views to divide, likewise, and the columns of each unit.
    """

    producers: list[_Sums]
    consumers: list[_Sums]
    of_producers: list[float]
    of_consumers: list[float]
    is_coupled: bool
    rows: list[tuple[Tensor, int]] = field(default_factory=list)
    columns: list[tuple[Tensor, int, int]] = field(default_factory=list)


class _Sums:
    """Sums over ``|W|^p`` of one weight, in its own dtype.

    Args:
        term: the weight, or the columns of it.
        weight: its memory.
        p: the norm's exponent.

    Attributes:
        buffer: memory for its powers, which others use in turn: of :attr:`buffer_size` entries.
    """

    buffer: Tensor

    def __init__(self, term: Term, weight: Tensor, p: float) -> None:
        self._view, self._entries = term.matrices(weight)
        self._p = p
        self._has_columns = term.columns is not None
        self._is_hollow = term.is_coupled
        # The axis of columns; kernel positions lie behind it, or along it.
        self._axis = 2 if term.layer.groups > 1 else 1
        self._kernel = tuple(range(self._axis + 1, self._view.dim()))
        self._together = self._entries * term.block
        self._is_vector = self._view.dim() == 1
        self._is_fast = not (self._kernel or self._is_hollow or self._is_vector)
        self._is_fast &= self._view.stride(-1) == 1

    @property
    def buffer_size(self) -> int:
        """How many powers it lays down at once."""
        return self._view.numel() if self._has_columns or not self._is_fast else 0

    def row_sums(self) -> Tensor:
        """``Σ_j M[i, j]``, shape ``(out,)``."""
        if self._is_vector:
            return self._powers().clone()
        if not self._is_fast:
            return self._powers().sum((self._axis, *self._kernel)).flatten()
        # One fused pass over contiguous rows, without a matrix of powers in between.
        norms: Tensor = torch.linalg.vector_norm(self._view, self._p, -1)
        return (norms.square_() if self._p == 2 else norms.pow_(self._p)).flatten()

    def column_sums(self) -> Tensor:
        """``Σ_i M[i, j]``, shape ``(units,)``."""
        powers = self._powers()
        if self._is_vector:
            return powers.clone()
        threads = torch.get_num_threads()
        if self._kernel or self._axis > 1:
            sums = powers.sum((self._axis - 1, *self._kernel))
        elif threads > 1 and powers.numel() >= _PARALLEL and len(powers) % threads == 0:
            # Each thread sums the rows that it has just raised to the power, and finds in its own
            # cache: what another one wrote may cost as much as all of the rest.
            sums = powers.view(threads, -1, powers.shape[1]).sum(1).sum(0)
        else:
            sums = powers.sum(0)
        sums = sums.flatten()
        return sums if self._together == 1 else sums.view(-1, self._together).sum(1)

    def _powers(self) -> Tensor:
        view = self._view
        powers = self.buffer[: view.numel()].view(view.shape)
        if self._p == 2:
            torch.square(view, out=powers)
        else:
            torch.abs(view, out=powers)
            if self._p != 1:
                powers.pow_(self._p)
        if self._is_hollow:
            by_unit = powers.unflatten(self._axis, (-1, self._entries))
            by_unit.diagonal(0, self._axis - 1, self._axis).fill_(0)
        return powers


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


def range_of(dtype: torch.dtype) -> tuple[float, float]:
    """Between which masses plain arithmetic in ``dtype`` holds a group.

    Entries of a sum that vanished, and sums that vanished beside others, are then at most a last
    place of it.
    """
    info = torch.finfo(dtype)
    room = range_margin(dtype) * 2**_WIDEST_COEFFICIENTS
    return info.smallest_normal * room, info.max / room


def holds(dtype: torch.dtype, low: float, high: float, p: float) -> bool:
    """Whether plain arithmetic holds a group whose masses lie from ``low`` to ``high``.

    Weights in a sum are then at most ``high^(1/p)`` and scales within 2^±24, so that a factor takes
    none out of range before the other brings it back. NaN compares false.
    """
    least, most = range_of(dtype)
    return least < low and high < most and math.log2(high / low) <= 2 * NARROW * p
