"""From scales to weights: each tensor is touched once, optimiser state goes along."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, optim
from torch.optim import Optimizer

from enorm._plan import Plan

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
class Target:
    """A parameter that scales: rows multiplied by one group, column blocks divided by another."""

    name: str
    rows: int | None = None
    columns: int | None = None
    block: int = 1


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
    columns = {
        consumer.weight: (index, consumer.block)
        for index, group in enumerate(plan.groups)
        for consumer in group.consumers
    }
    return [
        Target(name, rows.get(name), *columns.get(name, (None, 1)))
        for name in dict.fromkeys([*rows, *columns])
    ]


def _state(parameter: Tensor, optimizer: Optimizer | None) -> Iterator[tuple[Tensor, int]]:
    if optimizer is not None and parameter in optimizer.state:
        for key, power in _STATE_POWERS[type(optimizer)].items():
            # SGD without momentum keeps None, and what an option switches off is not there.
            if (buffer := optimizer.state[parameter].get(key)) is not None:
                yield buffer, power


def _exponents(
    target: Target, z: Sequence[Tensor], power: int
) -> tuple[Tensor | None, Tensor | None]:
    """Of rows and of columns, each in base 2."""
    rows = None if target.rows is None else z[target.rows] * power
    columns = None if target.columns is None else z[target.columns] * -power
    if columns is not None and target.block > 1:
        columns = columns.repeat_interleave(target.block)
    return rows, columns


def _along(vector: Tensor, axis: int, dimensions: int) -> Tensor:
    return vector.view(*[1] * axis, -1, *[1] * (dimensions - axis - 1))


def _scale_narrow_(tensor: Tensor, target: Target, factors: _Factors, power: int) -> None:
    """One factor after the other, in the tensor's own dtype."""
    if target.rows is not None:
        tensor.mul_(_along(factors(power, tensor.dtype)[target.rows], 0, tensor.dim()))
    if target.columns is not None:
        factor = factors(-power, tensor.dtype)[target.columns]
        if target.block > 1:
            factor = factor.repeat_interleave(target.block)
        tensor.mul_(_along(factor, 1, tensor.dim()))


def _scale_wide_(tensor: Tensor, target: Target, z: Sequence[Tensor], power: int) -> None:
    """The same in float64, and rounded once: for half precision and for extreme scales."""
    parts = [
        _along(exponent, axis, tensor.dim())
        for axis, exponent in enumerate(_exponents(target, z, power))
        if exponent is not None
    ]
    total = parts[0] if len(parts) == 1 else parts[0] + parts[1]
    # In two steps, so that no intermediate result leaves float64's range either.
    first = torch.floor(total / 2)
    tensor.copy_(tensor.double() * torch.exp2(first) * torch.exp2(total - first))
