"""Masses ``|W|^p`` of one weight, and the sums over them that a cycle needs.

For fixed weights a cycle only moves scale vectors, so it works on the masses
``M[i, j] = Σ |W[i, j, ...]|^p`` (summed over kernel positions and flatten blocks) and never on the
weights: with scales ``2^z`` the p-th power of a row norm is ``Σ_j M[i, j] 2^(−p z_j)`` times the
row's own ``2^(p z_i)``. Everything is returned as a base-2 logarithm in float64.

Three representations, from fast to safe, hold the same numbers:

* float32 sums, for weights of at most 32 bits whose sums stay far from the ends of float32;
* float64 sums, where those ends come near;
* float64 logarithms, which neither overflow nor vanish for any p and any finite weights.

For p = ∞ every sum is a maximum, of entries to the power 1, and logarithms are the only choice.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from enorm._layout import dense
from enorm._sharded import Rows

Precision = Literal["float32", "float64", "log"]


class Workspace:
    """Buffers that one weight's masses leave for the next: fresh pages cost more than the sums."""

    def __init__(self) -> None:
        self._free: dict[tuple[torch.Size, torch.dtype], list[Tensor]] = {}

    def take(self, shape: Sequence[int], dtype: torch.dtype, device: torch.device) -> Tensor:
        """An uninitialised contiguous tensor."""
        free = self._free.get((torch.Size(shape), dtype))
        return free.pop() if free else torch.empty(shape, dtype=dtype, device=device)

    def give(self, buffer: Tensor) -> None:
        """Take ``buffer`` back for later; the giver must not use it any more."""
        self._free.setdefault((buffer.shape, buffer.dtype), []).append(buffer)


class Masses:
    """Masses of a weight whose rows, columns or both carry scales.

    Args:
        weight: ``(out, in, *kernel)``, ``(features,)`` for a diagonal weight, or, if ``grouped``,
            ``(groups, out / groups, in / groups, *kernel)``.
        p: the norm's exponent; ∞ needs logarithms.
        rows: whether a group multiplies the rows.
        columns: whether a group divides the columns.
        block: consecutive columns per unit of the dividing group.
        grouped: whether the first axis is one of groups, each with its own rows and columns.
        hollow: leave out the diagonal, which has one scale on both sides.
        spread: how the rows are spread over processes, of which ``weight`` are this one's; None
            if it is whole.
        precision: the representation.
        workspace: where the powers of the entries are kept; None allocates.

    Attributes:
        seen: sums and factors computed so far, for :func:`lost_range`.
        zeros_are_dead: whether a sum of zero can only come from zero weights.
    """

    def __init__(
        self,
        weight: Tensor,
        p: float,
        *,
        rows: bool,
        columns: bool,
        block: int = 1,
        grouped: bool = False,
        hollow: bool = False,
        spread: Rows | None = None,
        precision: Precision,
        workspace: Workspace | None = None,
    ) -> None:
        self._maxima = p == math.inf
        # The power that entries are raised to, and scales with them.
        self.p = 1.0 if self._maxima else p
        self._has_rows = rows
        self._spread = spread if spread is not None and len(spread.sizes) > 1 else None
        self.log = precision == "log"
        self.dtype = torch.float32 if precision == "float32" else torch.float64
        # At most 2^±149 per weight and as much per scale: squares stay within 2^±900 of float64.
        self.zeros_are_dead = self.dtype is torch.float64 and weight.element_size() <= 4 and p <= 2
        self.seen: list[Tensor] = []
        weight = weight.detach()
        self._workspace = workspace or Workspace()
        self._buffer: Tensor | None = None
        self._matrix: Tensor | None = None
        if weight.dim() == 1:
            # Its own memory, for sums are looked at after the buffer went to the next weight.
            self._sums = self._powers(weight).clone()
            return
        # Axes from here on: groups if there are any, rows, units of the columns, entries of each.
        lead = weight.shape[: 2 if grouped else 1]
        by_unit = weight.reshape(*lead, weight.shape[len(lead)] // block, -1)
        if rows and columns:
            powers = self._powers(by_unit)
            self._matrix = powers.squeeze(-1) if powers.shape[-1] == 1 else self._inner(powers)
            if hollow:
                zero = -math.inf if self.log else 0.0
                first = 0 if self._spread is None else self._spread.start
                self._matrix.diagonal(first, dim1=-2, dim2=-1).fill_(zero)
        elif rows:
            self._sums = self._sums_along(by_unit.flatten(-2), (-1,)).flatten()
        else:
            self._sums = self._sums_along(by_unit, (-3, -1)).flatten()

    def _powers(self, weight: Tensor) -> Tensor:
        powers = self._workspace.take(weight.shape, self.dtype, weight.device)
        self._buffer = powers
        if self.p == 2 and weight.dtype is self.dtype and not self.log:
            return torch.square(weight, out=powers)
        # Converted before it is raised: a float32 power may overflow where a float64 one does not.
        powers.copy_(weight).abs_()
        if self.log:
            return powers.log2_().mul_(self.p)
        return powers if self.p == 1 else powers.pow_(self.p)

    def release(self) -> None:
        """Give the buffer back to the workspace; only :attr:`seen` may be used after."""
        if self._buffer is not None:
            self._workspace.give(self._buffer)
            self._buffer = self._matrix = None

    def _inner(self, powers: Tensor) -> Tensor:
        """Summed over kernel positions, the last axis."""
        if self.log:
            return self._combined(powers, (-1,))
        # Rows this short are summed fastest by a matrix product.
        positions = powers.shape[-1]
        return torch.mv(powers.view(-1, positions), powers.new_ones(positions)).view(
            powers.shape[:-1]
        )

    def _sum(self, powers: Tensor, axis: int) -> Tensor:
        return self._combined(powers, (axis,)) if self.log else powers.sum(axis)

    def _combined(self, logarithms: Tensor, axes: tuple[int, ...]) -> Tensor:
        """Of logarithms: that of the sum, or the maximum."""
        return logarithms.amax(axes) if self._maxima else _logsumexp2(logarithms, axes)

    def _sums_along(self, weight: Tensor, axes: tuple[int, ...]) -> Tensor:
        if self.log:
            return self._combined(self._powers(weight), axes)
        # One fused pass, without a tensor of powers in between.
        norms: Tensor = torch.linalg.vector_norm(weight, self.p, axes, dtype=self.dtype)
        return norms.square_() if self.p == 2 else norms.pow_(self.p)

    def matrix(self) -> Tensor:
        """``log2 M``, ``(out, units)``, for logarithms; summed to size 1 where no scales stand."""
        if self._matrix is not None:
            return dense(self._matrix, -math.inf)
        return self._sums[:, None] if self._has_rows else self._sums[None, :]

    def row_sums(self, factors: Tensor | None) -> Tensor:
        """``Σ_j M[i, j] f_j``, shape ``(out,)``, not for logarithms; None stands for ones."""
        if self._matrix is None:
            return self._gathered(self._sums)
        return self._gathered(self._total(self._matrix, factors))

    def column_sums(self, factors: Tensor | None) -> Tensor:
        """``Σ_i M[i, j] f_i``, shape ``(units,)``, not for logarithms; None stands for ones."""
        if self._matrix is None:
            return self._added(self._sums)
        own = factors if factors is None else self._own(factors)
        return self._added(self._total(self._matrix.mT, own))

    def rows(self, z: Tensor | None) -> Tensor:
        """``log2 Σ_j M[i, j] 2^(−p z_j)``, shape ``(out,)``; ``z=None`` stands for zeros."""
        if self._matrix is None:
            return self._log2(self._gathered(self._sums))
        if z is None:
            return self._log2(self._gathered(self._sum(self._matrix, -1).flatten()))
        exponents = z * -self.p
        if self.log:
            return self._gathered(self._log_total(self._matrix, exponents))
        shift, factors = self._factors(exponents)
        return self._log2(self._gathered(self._total(self._matrix, factors))).add_(shift)

    def columns(self, z: Tensor | None) -> Tensor:
        """``log2 Σ_i M[i, j] 2^(p z_i)``, shape ``(units,)``; ``z=None`` stands for zeros."""
        if self._matrix is None:
            return self._log2(self._added(self._sums))
        if z is None:
            return self._log2(self._added(self._sum(self._matrix, -2).flatten()))
        exponents = z * self.p
        if self.log:
            return self._added(self._log_total(self._matrix.mT, self._own(exponents)))
        shift, factors = self._factors(exponents)
        sums = self._added(self._total(self._matrix.mT, self._own(factors)))
        return self._log2(sums).add_(shift)

    def _own(self, vector: Tensor) -> Tensor:
        """Entries of the rows at hand."""
        return vector if self._spread is None else self._spread.own(vector)

    def _gathered(self, of_rows: Tensor) -> Tensor:
        """Of all rows."""
        return of_rows if self._spread is None else self._spread.gathered(of_rows)

    def _added(self, of_columns: Tensor) -> Tensor:
        """Summed over all rows."""
        if self._spread is None:
            return of_columns
        if not self.log:
            return self._spread.added(of_columns)
        top = self._spread.largest(of_columns)
        if self._maxima:
            return top
        shift = torch.where(top == -math.inf, 0.0, top)
        return self._spread.added(torch.exp2(of_columns - shift)).log2_().add_(shift)

    def _total(self, matrix: Tensor, factors: Tensor | None) -> Tensor:
        """``Σ_j matrix[…, i, j] f_j``, factors counted through all groups."""
        if factors is None:
            return matrix.sum(-1).flatten()
        if matrix.dim() == 2:
            return torch.mv(matrix, factors)
        return torch.bmm(matrix, factors.view(len(matrix), -1, 1)).flatten()

    def _log2(self, sums: Tensor) -> Tensor:
        if self.log:
            return sums
        self.seen.append(sums)
        return torch.log2(sums.double())

    def _factors(self, exponents: Tensor) -> tuple[Tensor, Tensor]:
        """The largest exponent, and with it taken out factors within (0, 1]."""
        shift = exponents.amax()
        factors = torch.exp2(exponents - shift).to(self.dtype)
        # A factor that vanishes may belong to the largest mass of all.
        self.seen.append(factors)
        return shift, factors

    def _log_total(self, matrix: Tensor, exponents: Tensor) -> Tensor:
        """``log2 Σ_j 2^(matrix[…, i, j] + e_j)``, exponents counted through all groups."""
        spread = exponents if matrix.dim() == 2 else exponents.view(len(matrix), 1, -1)
        return self._combined(matrix + spread, (-1,)).flatten()


def lost_range(seen: Sequence[Tensor], *, zeros_are_dead: bool) -> Tensor:
    """Whether a sum or a factor came too near the ends of the representation.

    Entries that vanish are below the smallest normal number, so a sum ``margin`` times above it
    does not miss them. A sum of exactly zero belongs to a dead unit or has vanished;
    ``zeros_are_dead`` says that the latter is impossible. Shape ``()``, bool, on the device.
    """
    sums = torch.cat(list(seen))
    info = torch.finfo(sums.dtype)
    margin = range_margin(sums.dtype)
    if zeros_are_dead:
        sums = torch.where(sums == 0, 1.0, sums)
    low, high = torch.aminmax(sums)
    return ~((low > info.smallest_normal * margin) & (high < info.max / margin))


def range_margin(dtype: torch.dtype) -> float:
    """How far from the ends of ``dtype`` sums are trusted: room for 2^12 vanished addends."""
    return 2.0**12 / torch.finfo(dtype).eps


def _logsumexp2(powers: Tensor, axes: tuple[int, ...]) -> Tensor:
    """``log2 Σ 2^x`` along ``axes``; an empty sum of vanished terms is −inf, never NaN."""
    top = powers.amax(axes, keepdim=True)
    shift = torch.where(top == -math.inf, 0.0, top)
    return torch.exp2(powers - shift).sum(axes).log2_().add_(shift.squeeze(axes))
