"""From scales to weights: each tensor is touched once, optimiser state goes along."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, optim
from torch.optim import Optimizer

from enorm._layout import along_columns, along_rows, canonical
from enorm._plan import Layer, Plan

_MOMENTS = {"exp_avg": -1, "exp_avg_sq": -2}

# With W' = d W the gradient with respect to W' is 1/d of that with respect to W. Powers of d by
# optimiser and buffer: −1 where it is linear in gradients, −2 where quadratic; what does not stand
# here, such as RMSprop's momentum of normalised gradients, does not depend on d.
_STATE_POWERS: dict[type[Optimizer], dict[str, int]] = {
    optim.SGD: {"momentum_buffer": -1},
    optim.Adam: {**_MOMENTS, "max_exp_avg_sq": -2},
    optim.AdamW: {**_MOMENTS, "max_exp_avg_sq": -2},
    optim.NAdam: _MOMENTS,
    optim.RAdam: _MOMENTS,
    optim.Adamax: {"exp_avg": -1, "exp_inf": -1},
    optim.RMSprop: {"square_avg": -2, "grad_avg": -1},
    optim.Rprop: {"prev": -1},
    optim.Adagrad: {"sum": -2},
    optim.Adadelta: {"square_avg": -2},
}
if hasattr(optim, "Muon"):  # torch 2.9 brought it
    _STATE_POWERS[optim.Muon] = {"momentum_buffer": -1}

# Widest log2 d for which a moderate weight may be multiplied by one factor after the other.
_NARROW = 24.0


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


def check_optimizer(optimizer: Any) -> None:
    """Raise TypeError unless the state of ``optimizer`` is known to go with the scales."""
    if not isinstance(optimizer, Optimizer):
        raise TypeError(
            f"optimizer must be a torch.optim.Optimizer, got {type(optimizer).__name__}"
            + ("; a plan is given as plan=..." if isinstance(optimizer, Plan) else "")
        )
    if type(optimizer) not in _STATE_POWERS:
        known = ", ".join(kind.__name__ for kind in _STATE_POWERS)
        raise TypeError(
            f"optimizer is {type(optimizer).__name__}, whose state enorm cannot carry along: "
            f"use {known}, or pass no optimizer if none has run yet"
        )


@torch.no_grad()
def write_(
    targets: Sequence[Target],
    tensors: Mapping[str, Tensor],
    z: Sequence[Tensor],
    optimizer: Optimizer | None = None,
    *,
    moderate: bool = False,
    inverse: Collection[str] = (),
) -> None:
    """Multiply producers by ``2^z`` and divide consumers by it, in place.

    Args:
        targets: from :func:`targets_of`.
        tensors: the parameters by name.
        z: ``log2 d`` per group, shape ``(size,)`` float64.
        optimizer: its state goes with ``d`` to the power that keeps it equal to the state that
            the same steps would have left on the rescaled network.
        moderate: whether no weight is above 2^100, so that one factor alone cannot take it out
            of float32's range before the other brings it back. Entries below 2^-102 may then lose
            digits: at most 2^-125 each.
        inverse: parameters whose optimiser state goes with ``d`` to the opposite power.
    """
    # Asking a GPU how wide the scales are would synchronise; there the wide path serves all.
    on_cpu = z[0].device.type == "cpu"
    factors = _Factors(z)
    widest = factors.exponents.abs().amax().item() if moderate and on_cpu else math.inf
    for target in targets:
        parameter = tensors[target.name]
        sign = -1 if target.name in inverse else 1
        state = [(buffer, sign * power) for buffer, power in _state(parameter, optimizer)]
        for tensor, power in [(parameter, 1), *state]:
            narrow = abs(power) * widest <= _NARROW
            if narrow and tensor.dtype in (torch.float32, torch.float64):
                _scale_narrow_(tensor, target, factors, power)
            else:
                _scale_wide_(tensor, target, z, power)


class _Factors:
    """``d`` to some power in some dtype: of all groups at once, for they are many and small."""

    def __init__(self, z: Sequence[Tensor]) -> None:
        self.exponents = torch.cat(list(z))
        self._sizes = [len(one) for one in z]
        self._made: dict[tuple[int, torch.dtype], Sequence[Tensor]] = {}

    def __call__(self, power: int, dtype: torch.dtype) -> Sequence[Tensor]:
        if (power, dtype) not in self._made:
            made = torch.exp2(self.exponents * power).to(dtype)
            self._made[power, dtype] = made.split(self._sizes)
        return self._made[power, dtype]


def touched_tensors(
    targets: Sequence[Target], tensors: Mapping[str, Tensor], optimizer: Optimizer | None
) -> Iterator[Tensor]:
    """The parameters and buffers that :func:`write_` changes."""
    for target in targets:
        yield tensors[target.name]
        yield from (buffer for buffer, _ in _state(tensors[target.name], optimizer))


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


def _state(parameter: Tensor, optimizer: Optimizer | None) -> Iterator[tuple[Tensor, int]]:
    if optimizer is not None and parameter in optimizer.state:
        for key, power in _STATE_POWERS[type(optimizer)].items():
            # SGD without momentum keeps None, and what an option switches off is not there.
            if (buffer := optimizer.state[parameter].get(key)) is not None:
                yield buffer, power


def _scale_narrow_(tensor: Tensor, target: Target, factors: _Factors, power: int) -> None:
    """One factor after the other, in the tensor's own dtype."""
    view = target.view(tensor)
    if target.rows is not None:
        factor = factors(power, tensor.dtype)[target.rows]
        view.mul_(along_rows(factor, view, target.groups))
    if target.columns:
        factor = target.column_vector(factors(-power, tensor.dtype), 1.0)
        view.mul_(along_columns(factor, view, target.groups))


def _scale_wide_(tensor: Tensor, target: Target, z: Sequence[Tensor], power: int) -> None:
    """The same in float64, and rounded once: for half precision and for extreme scales."""
    view = target.view(tensor)
    total: Tensor | float = 0.0
    if target.rows is not None:
        total = total + along_rows(z[target.rows] * power, view, target.groups)
    if target.columns:
        total = total + along_columns(target.column_vector(z, 0.0) * -power, view, target.groups)
    assert isinstance(total, Tensor)
    # In two steps, so that no intermediate result leaves float64's range either.
    first = torch.floor(total / 2)
    view.copy_(view.double() * torch.exp2(first) * torch.exp2(total - first))
