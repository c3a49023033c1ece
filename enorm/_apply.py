"""From scales to weights: each tensor is touched once, optimiser state goes along."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from enorm._followers import Followers
from enorm._layout import along_columns, along_rows, canonical, flattened
from enorm._memory import overlaps_itself
from enorm._plan import Layer, Plan
from enorm._sharded import local, rows_of

# Widest log2 d for which a tensor may be multiplied by one factor after the other: in its own
# dtype, and in float64, whose range is 2^±1022, where its own is within 2^±149.
NARROW = 24.0
_ROOMY = 400.0


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
    def last_group(self) -> int:
        """Of those that scale it."""
        of_columns = [part.group for part in self.columns if part.group is not None]
        return max(of_columns if self.rows is None else [self.rows, *of_columns])

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


@dataclass(frozen=True)
class Job:
    """A tensor to multiply by ``d`` to some power: a parameter, or what goes with it.

    Attributes:
        target: the parameter.
        tensor: the parameter itself, or one of its shape.
        power: of ``d``.
    """

    target: Target
    tensor: Tensor
    power: int = 1


def parameters(targets: Sequence[Target], tensors: Mapping[str, Tensor]) -> list[Job]:
    """The parameters themselves."""
    return [Job(target, tensors[target.name]) for target in targets]


def following(
    targets: Sequence[Target],
    tensors: Mapping[str, Tensor],
    followers: Followers,
    preconditioned: Collection[str] = (),
) -> list[Job]:
    """What goes along; ``preconditioned`` are names of parameters, as for :meth:`Followers.of`.

    Raises:
        TypeError: state for which there is no rule.
        ValueError: state of another shape, a copy that lacks a parameter or shares its memory, or
            either in memory that cannot be written with it.
        RuntimeError: a tensor that cannot be written here.
    """
    jobs = [
        Job(target, tensor, power)
        for target in targets
        for tensor, power in followers.of(
            target.name, tensors[target.name], preconditioned=target.name in preconditioned
        )
    ]
    for job in jobs:
        name, device = job.target.name, tensors[job.target.name].device
        if job.tensor.device != device:
            raise ValueError(
                f"what goes with parameter {name!r} is on {job.tensor.device}, and that is on "
                f"{device}: put state and copies where the model is"
            )
        if overlaps_itself(local(job.tensor)):
            raise ValueError(
                f"what goes with parameter {name!r} shares memory within itself, as an expanded "
                "tensor does: clone it"
            )
        if job.tensor.is_inference() and not torch.is_inference_mode_enabled():
            raise RuntimeError(
                f"what goes with parameter {name!r} was made in inference mode and "
                "cannot be written outside of it: keep optimizer.step() and the making of copies "
                "out of torch.inference_mode()"
            )
    return jobs


@torch.no_grad()
def write_(jobs: Sequence[Job], z: Sequence[Tensor], *, quick: bool = False) -> None:
    """Multiply producers by ``2^z`` and divide consumers by it, in place.

    Args:
        jobs: the tensors.
        z: ``log2 d`` per group, shape ``(size,)`` float64.
        quick: whether a tensor in full precision may be multiplied by one factor after the other,
            each product rounded, where neither takes an entry out of range before the other brings
            it back. In float32 entries below 2^-102 may then lose digits: at most 2^-125 each.
    """
    # Asking a GPU how wide the scales are would synchronise; there the wide path serves all.
    on_cpu = z[0].device.type == "cpu"
    factors = Factors(z)
    widest = factors.exponents.abs().amax().item() if on_cpu else math.inf
    for job in jobs:
        mine, width = local(job.tensor), abs(job.power) * widest
        narrow = quick and width <= NARROW and mine.dtype in (torch.float32, torch.float64)
        has_both = job.target.rows is not None and job.target.columns
        if narrow and (not has_both or has_room(mine)):
            _multiply_(mine, job, factors)
        elif width <= _ROOMY and mine.dtype is not torch.float64:
            wide = mine.double()
            _multiply_(wide, job, factors)
            mine.copy_(wide)
        else:
            _multiply_at_once_(job, z)


def has_room(tensor: Tensor) -> bool:
    """Whether the widest factor of a quick step keeps every entry finite, with a 2 to spare."""
    if not tensor.numel():
        return True
    low, high = torch.aminmax(tensor.detach())
    limit = torch.finfo(tensor.dtype).max / 2 ** (NARROW + 1)
    # NaN compares false.
    return -limit <= low.item() and high.item() <= limit


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


def _multiply_(tensor: Tensor, job: Job, factors: Factors) -> None:
    """One factor after the other, in the dtype of ``tensor``, which lies as the job's does."""
    target, power = job.target, job.power
    view, entries = flattened(target.view(tensor), target.groups)
    if target.rows is not None:
        factor = _own(factors(power, tensor.dtype)[target.rows], job.tensor)
        view.mul_(along_rows(factor, view, target.groups))
    if target.columns:
        factor = target.column_vector(factors(-power, tensor.dtype), 1.0)
        if entries > 1:
            factor = factor.repeat_interleave(entries)
        view.mul_(along_columns(factor, view, target.groups))


def _multiply_at_once_(job: Job, z: Sequence[Tensor]) -> None:
    """By the product of both, in float64, and rounded once: for scales however far apart."""
    target, tensor, power = job.target, job.tensor, job.power
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
