"""From scales to weights: each tensor is touched once, optimiser state goes along."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from enorm._followers import Followers
from enorm._layout import along_columns, along_rows, canonical, flattened
from enorm._plan import Layer, Plan
from enorm._sharded import local, rows_of

# Widest log2 d for which a moderate weight may be multiplied by one factor after the other.
NARROW = 24.0


@dataclass(frozen=True)
class Columns:
    """Columns that one group divides, in blocks, or that stay as they are (``group`` is None)."""

    group: int | None
    length: int
    block: int = 1


@dataclass(frozen=True)
class Target:
    """A parameter that scales.

    Attributes:
        name: of the parameter.
        rows: the group that multiplies its rows, or None.
        columns: what divides its columns, from the first to the last; empty if nothing does.
        layer: how a weight lies in memory; None for a vector, such as a bias.
    """

    name: str
    rows: int | None = None
    columns: tuple[Columns, ...] = ()
    layer: Layer | None = None

    @property
    def groups(self) -> int:
        """Of a grouped convolution."""
        return 1 if self.layer is None else self.layer.groups

    def view(self, tensor: Tensor) -> Tensor:
        """Of the parameter, or of anything of its shape."""
        return tensor if self.layer is None else canonical(tensor, self.layer)

    def column_vector(self, of_groups: Sequence[Tensor], neutral: float) -> Tensor:
        """One entry per column; ``neutral`` where none divides."""
        parts = []
        for part in self.columns:
            if part.group is None:
                parts.append(of_groups[0].new_full((part.length,), neutral))
            elif part.block > 1:
                parts.append(of_groups[part.group].repeat_interleave(part.block))
            else:
                parts.append(of_groups[part.group])
        return parts[0] if len(parts) == 1 else torch.cat(parts)


@torch.no_grad()
def write_(
    targets: Sequence[Target],
    tensors: Mapping[str, Tensor],
    z: Sequence[Tensor],
    followers: Followers | None = None,
    *,
    moderate: bool = False,
    inverse: Collection[str] = (),
) -> None:
    """Multiply producers by ``2^z`` and divide consumers by it, in place.

    Args:
        targets: from :func:`targets_of`.
        tensors: the parameters by name.
        z: ``log2 d`` per group, shape ``(size,)`` float64.
        followers: what goes along with ``d`` to a power of its own.
        moderate: whether no weight is above 2^100, so that one factor alone cannot take it out
            of float32's range before the other brings it back. Entries below 2^-102 may then lose
            digits: at most 2^-125 each.
        inverse: parameters whose optimiser state goes with ``d`` to the opposite power.
    """
    # All of it is looked up first: what is unknown is found before anything has changed.
    everything = [
        [(tensors[target.name], 1), *following(target, tensors, followers, inverse)]
        for target in targets
    ]
    # Asking a GPU how wide the scales are would synchronise; there the wide path serves all.
    on_cpu = z[0].device.type == "cpu"
    factors = Factors(z)
    widest = factors.exponents.abs().amax().item() if moderate and on_cpu else math.inf
    for target, tensors_and_powers in zip(targets, everything, strict=True):
        for tensor, power in tensors_and_powers:
            narrow = abs(power) * widest <= NARROW
            if narrow and tensor.dtype in (torch.float32, torch.float64):
                _scale_narrow_(tensor, target, factors, power)
            else:
                _scale_wide_(tensor, target, z, power)


class Factors:
    """``d`` to some power in some dtype: of all groups at once, for they are many and small.

    Attributes:
        exponents: ``log2 d`` of all groups, one behind the other.
        sizes: of the groups.
    """

    def __init__(self, z: Sequence[Tensor]) -> None:
        self.exponents = torch.cat(list(z))
        self.sizes = [len(one) for one in z]
        self._made: dict[tuple[int, torch.dtype], Sequence[Tensor]] = {}

    def whole(self, power: int, dtype: torch.dtype) -> Tensor:
        """``d ** power`` of all groups, one behind the other."""
        return torch.exp2(self.exponents * power).to(dtype)

    def __call__(self, power: int, dtype: torch.dtype) -> Sequence[Tensor]:
        """``d ** power``, one vector per group."""
        if (power, dtype) not in self._made:
            self._made[power, dtype] = self.whole(power, dtype).split(self.sizes)
        return self._made[power, dtype]


def touched_tensors(
    targets: Sequence[Target], tensors: Mapping[str, Tensor], followers: Followers
) -> Iterator[Tensor]:
    """The parameters and what follows them: all that :func:`write_` changes."""
    for target in targets:
        yield tensors[target.name]
        yield from (tensor for tensor, _ in following(target, tensors, followers, ()))


def following(
    target: Target,
    tensors: Mapping[str, Tensor],
    followers: Followers | None,
    inverse: Collection[str],
) -> Iterator[tuple[Tensor, int]]:
    if followers is not None:
        for tensor, power in followers.of(target.name, tensors[target.name]):
            # Only state and gradients have negative powers; copies are parameters themselves.
            yield tensor, -power if target.name in inverse and power < 0 else power


def targets_of(plan: Plan) -> list[Target]:
    """The parameters that scale, each once."""
    rows = {
        name: index
        for index, group in enumerate(plan.groups)
        for producer in group.producers
        for name in (producer.weight, producer.bias)
        if name is not None
    }
    layers = {layer.weight: layer for layer in plan.layers}
    columns: dict[str, list[tuple[int, Columns]]] = {}
    for index, group in enumerate(plan.groups):
        for consumer in group.consumers:
            part = Columns(index, consumer.block * group.size, consumer.block)
            columns.setdefault(consumer.weight, []).append((consumer.start, part))
    return [
        Target(name, rows.get(name), _filled(columns.get(name, []), layers[name].inputs), layer)
        if (layer := layers.get(name)) is not None
        else Target(name, rows.get(name))
        for name in dict.fromkeys([*rows, *columns])
    ]


def _filled(columns: Sequence[tuple[int, Columns]], inputs: int) -> tuple[Columns, ...]:
    """The same without gaps: from the first column to the last."""
    found: list[Columns] = []
    end = 0
    for start, part in sorted(columns, key=lambda one: one[0]):
        if start > end:
            found.append(Columns(None, start - end))
        found.append(part)
        end = start + part.length
    if found and end < inputs:
        found.append(Columns(None, inputs - end))
    return tuple(found)


def _own(vector: Tensor, tensor: Tensor) -> Tensor:
    """Entries of the rows of ``tensor`` that this process holds."""
    rows = rows_of(tensor)
    return vector if rows is None else rows.own(vector)


def _scale_narrow_(tensor: Tensor, target: Target, factors: Factors, power: int) -> None:
    """One factor after the other, in the tensor's own dtype."""
    view, entries = flattened(target.view(local(tensor)), target.groups)
    if target.rows is not None:
        factor = _own(factors(power, tensor.dtype)[target.rows], tensor)
        view.mul_(along_rows(factor, view, target.groups))
    if target.columns:
        factor = target.column_vector(factors(-power, tensor.dtype), 1.0)
        if entries > 1:
            factor = factor.repeat_interleave(entries)
        view.mul_(along_columns(factor, view, target.groups))


def _scale_wide_(tensor: Tensor, target: Target, z: Sequence[Tensor], power: int) -> None:
    """The same in float64, and rounded once: for half precision and for extreme scales."""
    view = target.view(local(tensor))
    total: Tensor | float = 0.0
    if target.rows is not None:
        rows = _own(z[target.rows], tensor)
        total = total + along_rows(rows * power, view, target.groups)
    if target.columns:
        total = total + along_columns(target.column_vector(z, 0.0) * -power, view, target.groups)
    assert isinstance(total, Tensor)
    # In two steps, so that no intermediate result leaves float64's range either.
    first = torch.floor(total / 2)
    view.copy_(view.double() * torch.exp2(first) * torch.exp2(total - first))
