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
    """Memory that one weight's masses leave for the next: fresh pages cost more than the sums.

    On a GPU all of it is kept, also for a graph that a step was captured in.
    """

    def __init__(self) -> None:
        self._free: dict[torch.dtype, list[Tensor]] = {}

    def take(self, size: int, dtype: torch.dtype, device: torch.device) -> Tensor:
        """An uninitialised vector of at least ``size`` entries; the caller takes what it needs."""
        free = self._free.setdefault(dtype, [])
        large_enough = [place for place, buffer in enumerate(free) if len(buffer) >= size]
        if large_enough:
            return free.pop(min(large_enough, key=lambda place: len(free[place])))
        # Too small for this weight, and so for the next of its size. But a captured CUDA graph goes
        # on using what it was captured with.
        if free and device.type == "cpu":
            free.pop()
        # What is made in inference mode could not be written outside of it.
        with torch.inference_mode(False):
            return torch.empty(size, dtype=dtype, device=device)

    def give(self, buffer: Tensor) -> None:
        """Take ``buffer`` back for later; the giver must not use it any more."""
        self._free.setdefault(buffer.dtype, []).append(buffer)


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
        once: whether the masses serve one cycle only, which is not worth summing kernel positions
            for.

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
        once: bool = False,
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
        # Columns of the matrix that belong to one unit.
        self._entries = 1
        if weight.dim() == 1:
            # Its own memory, for sums are looked at after the buffer went to the next weight.
            self._sums = self._powers(weight).clone()
            self._give_back()
            return
        # Axes from here on: groups if there are any, rows, units' entries side by side.
        lead = weight.shape[: 2 if grouped else 1]
        units = weight.shape[len(lead)] // block
        flat = weight.reshape(*lead, -1)
        entries = flat.shape[-1] // units if units else 1
        if not columns:
            self._sums = self._along_rows(flat).flatten()
            self._give_back()
        elif not rows:
            sums = self._sum(self._powers(flat), -2)
            self._sums = self._by_unit(sums, entries).flatten()
            self._give_back()
        else:
            powers = self._powers(flat)
            if entries > 1 and once and not self.log:
                self._matrix, self._entries = powers, entries
            else:
                self._matrix = self._by_unit(powers, entries)
                if entries > 1:
                    self._give_back()
            if hollow:
                zero = -math.inf if self.log else 0.0
                first = 0 if self._spread is None else self._spread.start
                by_unit = self._matrix.unflatten(-1, (-1, self._entries))
                by_unit.diagonal(first, dim1=-3, dim2=-2).fill_(zero)

    def _powers(self, weight: Tensor) -> Tensor:
        self._buffer = self._workspace.take(weight.numel(), self.dtype, weight.device)
        powers = self._buffer[: weight.numel()].view(weight.shape)
        if self.p == 2 and weight.dtype is self.dtype and not self.log:
            return torch.square(weight, out=powers)
        # Converted before it is raised: a float32 power may overflow where a float64 one does not.
        powers.copy_(weight).abs_()
        if self.log:
            return powers.log2_().mul_(self.p)
        return powers if self.p == 1 else powers.pow_(self.p)

    def release(self) -> None:
        """Let go of the matrix and its memory; only :attr:`seen` may be used after."""
        self._matrix = None
        self._give_back()

    def _give_back(self) -> None:
        if self._buffer is not None:
            self._workspace.give(self._buffer)
            self._buffer = None

    def _by_unit(self, powers: Tensor, entries: int) -> Tensor:
        """Summed over the entries of each unit, which stand side by side on the last axis."""
        if entries == 1:
            return powers
        parts = powers.unflatten(-1, (-1, entries))
        if self.log:
            return self._combined(parts, (-1,))
        # Rows this short are summed fastest by a matrix product.
        ones = powers.new_ones(entries)
        return torch.mv(parts.reshape(-1, entries), ones).view(parts.shape[:-1])

    def _along_rows(self, weight: Tensor) -> Tensor:
        if self.log:
            return self._sum(self._powers(weight), -1)
        # One fused pass over contiguous rows, without a tensor of powers in between.
        norms: Tensor = torch.linalg.vector_norm(weight, self.p, -1, dtype=self.dtype)
        return norms.square_() if self.p == 2 else norms.pow_(self.p)

    def _sum(self, powers: Tensor, axis: int) -> Tensor:
        return self._combined(powers, (axis,)) if self.log else powers.sum(axis)

    def _combined(self, logarithms: Tensor, axes: tuple[int, ...]) -> Tensor:
        """Of logarithms: that of the sum, or the maximum."""
        return logarithms.amax(axes) if self._maxima else _logsumexp2(logarithms, axes)

    def matrix(self) -> Tensor:
        """``log2 M``, ``(out, units)``, for logarithms; summed to size 1 where no scales stand."""
        if self._matrix is not None:
            return dense(self._matrix, -math.inf)
        return self._sums[:, None] if self._has_rows else self._sums[None, :]

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
        return self._log2(self._gathered(self._row_total(self._matrix, factors))).add_(shift)

    def columns(self, z: Tensor | None) -> Tensor:
        """``log2 Σ_i M[i, j] 2^(p z_i)``, shape ``(units,)``; ``z=None`` stands for zeros."""
        if self._matrix is None:
            return self._log2(self._added(self._sums))
        if z is None:
            return self._log2(self._added(self._column_total(self._matrix, None)))
        exponents = z * self.p
        if self.log:
            return self._added(self._log_total(self._matrix.mT, self._own(exponents)))
        shift, factors = self._factors(exponents)
        sums = self._added(self._column_total(self._matrix, self._own(factors)))
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

    def _row_total(self, matrix: Tensor, factors: Tensor | None) -> Tensor:
        if factors is not None and self._entries > 1:
            factors = factors.repeat_interleave(self._entries)
        return _total(matrix, factors)

    def _column_total(self, matrix: Tensor, factors: Tensor | None) -> Tensor:
        if self.log:
            return self._sum(matrix, -2).flatten()
        return self._by_unit(_total(matrix.mT, factors), self._entries)

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


def _total(matrix: Tensor, factors: Tensor | None) -> Tensor:
    """``Σ_j matrix[…, i, j] f_j``, factors counted through all groups; None stands for ones."""
    if factors is None:
        return matrix.sum(-1).flatten()
    if matrix.dim() == 2:
        return torch.mv(matrix, factors)
    return torch.bmm(matrix, factors.view(len(matrix), -1, 1)).flatten()


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
