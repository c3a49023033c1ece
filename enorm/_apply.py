"""From scales to weights: each tensor is touched once, optimiser state goes along."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.optim import SGD, Optimizer

from enorm._plan import Plan

# With W' = d W the gradient with respect to W' is 1/d of that with respect to W, and so is every
# buffer that is linear in gradients. Powers of d by optimiser and buffer.
_STATE_POWERS: dict[type[Optimizer], dict[str, int]] = {SGD: {"momentum_buffer": -1}}

# Two factors of at most 2^±40 each cannot take a float32 product of theirs out of range and back.
_NARROW = 40.0


@dataclass(frozen=True)
class _Target:
    """A parameter that scales: rows multiplied by one group, column blocks divided by another."""

    name: str
    rows: int | None = None
    columns: int | None = None
    block: int = 1


def check_optimizer(optimizer: Optimizer) -> None:
    """Raise TypeError unless the state of ``optimizer`` is known to go with the scales."""
    if type(optimizer) not in _STATE_POWERS:
        known = ", ".join(kind.__name__ for kind in _STATE_POWERS)
        raise TypeError(
            f"optimizer is {type(optimizer).__name__}, whose state enorm cannot carry along: "
            f"use {known}, or pass no optimizer if none has run yet"
        )


@torch.no_grad()
def write_(
    plan: Plan,
    tensors: Mapping[str, Tensor],
    z: Sequence[Tensor],
    optimizer: Optimizer | None = None,
) -> None:
    """Multiply producers by ``2^z`` and divide consumers by it, in place.

    Args:
        plan: the plan.
        tensors: the parameters by name.
        z: ``log2 d`` per group, shape ``(size,)`` float64.
        optimizer: its state goes with ``d`` to the power that keeps it equal to the state that
            the same steps would have left on the rescaled network.
    """
    # Asking a GPU how wide the scales are would synchronise; there the wide path serves all.
    narrow = z[0].device.type == "cpu" and bool(torch.cat(list(z)).abs().amax() <= _NARROW)
    for target in _targets(plan):
        parameter = tensors[target.name]
        _scale_(parameter, target, z, 1, narrow)
        for buffer, power in _state(parameter, optimizer):
            _scale_(buffer, target, z, power, narrow)


def touched_tensors(
    plan: Plan, tensors: Mapping[str, Tensor], optimizer: Optimizer | None
) -> Iterator[Tensor]:
    """The parameters and buffers that :func:`write_` changes."""
    for target in _targets(plan):
        yield tensors[target.name]
        yield from (buffer for buffer, _ in _state(tensors[target.name], optimizer))


def _targets(plan: Plan) -> list[_Target]:
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
        _Target(name, rows.get(name), *columns.get(name, (None, 1)))
        for name in dict.fromkeys([*rows, *columns])
    ]


def _state(parameter: Tensor, optimizer: Optimizer | None) -> Iterator[tuple[Tensor, int]]:
    if optimizer is not None and parameter in optimizer.state:
        for key, power in _STATE_POWERS[type(optimizer)].items():
            # SGD without momentum keeps None.
            if (buffer := optimizer.state[parameter].get(key)) is not None:
                yield buffer, power


def _scale_(tensor: Tensor, target: _Target, z: Sequence[Tensor], power: int, narrow: bool) -> None:
    exponents = []
    if target.rows is not None:
        exponents.append((z[target.rows] * power).view(-1, *[1] * (tensor.dim() - 1)))
    if target.columns is not None:
        down = z[target.columns] * -power
        if target.block > 1:
            down = down.repeat_interleave(target.block)
        exponents.append(down.view(-1, *[1] * (tensor.dim() - 2)))
    if narrow and tensor.dtype in (torch.float32, torch.float64):
        for exponent in exponents:
            tensor.mul_(torch.exp2(exponent).to(tensor.dtype))
    else:
        # One factor and one rounding per entry: neither half precision nor an excursion of the
        # row's factor beyond the range, taken back by the column's, may show in the result.
        total = exponents[0] if len(exponents) == 1 else exponents[0] + exponents[1]
        # In two steps, so that no intermediate result leaves float64's range either.
        first = torch.floor(total / 2)
        tensor.copy_(tensor.double() * torch.exp2(first) * torch.exp2(total - first))
