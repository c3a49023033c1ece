"""Cycles over scale vectors: coordinate descent on a convex problem.

In ``z = log2 d`` the energy is a sum of exponentials of differences. Along one unit it is
``P 2^(p z) + Q 2^(−p z)`` plus a constant, where P collects the unit's producers and Q its
consumers; the exact minimum over that unit is ``z* = log2(Q / P) / (2p)``. One group after the
other gives block Gauss–Seidel (the paper's Algorithm 1), all at once Jacobi, and
``z + ω (z* − z)`` over-relaxation. Source: Stock et al. 2019, Algorithm 1.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Literal

import torch
from torch import Tensor

from enorm._layout import canonical, flattened
from enorm._masses import Masses, Precision, Workspace, lost_range
from enorm._plan import Consumer, Layer, Plan
from enorm._sharded import local, rows_of

Order = Literal["cyclic", "jacobi"]
# One number to the power of the layers behind, or one per module's name.
Factor = float | Mapping[str, float]


@dataclass(frozen=True)
class Term:
    """A weight in the energy: its coefficient, and the groups on its rows and columns.

    Behind a concatenation each slice of its columns is a term of its own: ``columns`` divides
    ``length`` of them from ``start`` on, all if ``length`` is None.
    """

    layer: Layer
    log2_coefficient: float
    rows: int | None
    columns: int | None
    block: int = 1
    start: int = 0
    length: int | None = None

    @property
    def weight(self) -> str:
        """The parameter's name."""
        return self.layer.weight

    @property
    def is_coupled(self) -> bool:
        """Whether it couples units of one group to each other."""
        return self.rows is not None and self.rows == self.columns

    def matrices(self, weight: Tensor) -> tuple[Tensor, int]:
        """Its columns of the whole ``weight``, kernel positions beside each other if memory allows.

        Returns:
            A view, and how many of its columns each column of the weight became.
        """
        view, entries = flattened(canonical(weight, self.layer), self.layer.groups)
        if self.length is not None:
            view = view.narrow(1, self.start * entries, self.length * entries)
        return view, entries

    def masses(
        self,
        tensors: Mapping[str, Tensor],
        p: float,
        precision: Precision,
        workspace: Workspace | None = None,
        *,
        once: bool = False,
    ) -> Masses:
        """Masses of the weight as it is now, ``once`` for a single cycle."""
        weight = tensors[self.weight]
        view = canonical(local(weight), self.layer)
        if self.length is not None:
            view = view.narrow(1, self.start, self.length)
        return Masses(
            view,
            p,
            rows=self.rows is not None,
            columns=self.columns is not None,
            block=self.block,
            grouped=self.layer.groups > 1,
            hollow=self.is_coupled,
            spread=rows_of(weight),
            precision=precision,
            workspace=workspace,
            once=once,
        )


@dataclass(frozen=True)
class Problem:
    """The energy over scale vectors, without any tensor: terms, group sizes, biases.

    ``biases[g]`` are the parameters that scale with group ``g`` without counting in the energy.
    ``last_uses[g]`` are the terms that no group after ``g`` needs in a sweep.
    ``coupled[g]`` says that units of ``g`` are coupled to each other: their common update goes half
    of the way, for the whole of it could overshoot for ever.
    """

    p: float
    terms: tuple[Term, ...]
    producers: tuple[tuple[int, ...], ...]
    consumers: tuple[tuple[int, ...], ...]
    biases: tuple[tuple[str, ...], ...]
    last_uses: tuple[tuple[int, ...], ...]
    coupled: tuple[bool, ...]

    @property
    def power(self) -> float:
        """What scales are raised to in a mass: p, or 1 for p = ∞."""
        return 1.0 if self.p == math.inf else self.p


def log2_coefficient(plan: Plan, layer: Layer, p: float, c: Factor) -> float:
    """``log2 c_k^p``, the coefficient of a layer in the energy; ``log2 c_k`` for p = ∞.

    ``c_k = c^(q − k)`` for a number, or as the mapping says.
    """
    power = 1.0 if p == math.inf else p
    if isinstance(c, Mapping):
        return power * math.log2(c.get(layer.module, 1.0))
    return power * (plan.depth - layer.depth) * math.log2(c)


def build_problem(plan: Plan, p: float, c: Factor) -> Problem:
    """The problem that ``plan`` poses for exponent ``p`` and depth factors ``c``."""
    p = float(p)
    rows = {
        producer.weight: index
        for index, group in enumerate(plan.groups)
        for producer in group.producers
    }
    columns: dict[str, list[tuple[int, Consumer]]] = {}
    for index, group in enumerate(plan.groups):
        for consumer in group.consumers:
            columns.setdefault(consumer.weight, []).append((index, consumer))
    sizes = [group.size for group in plan.groups]
    terms: list[Term] = []
    for layer in plan.layers:
        coefficient = log2_coefficient(plan, layer, p, c)
        terms += _terms(
            layer, coefficient, rows.get(layer.weight), columns.get(layer.weight, []), sizes
        )
    indices = range(len(plan.groups))
    return Problem(
        p=p,
        terms=tuple(terms),
        producers=tuple(tuple(t for t, m in enumerate(terms) if m.rows == g) for g in indices),
        consumers=tuple(tuple(t for t, m in enumerate(terms) if m.columns == g) for g in indices),
        biases=tuple(
            tuple(producer.bias for producer in group.producers if producer.bias is not None)
            for group in plan.groups
        ),
        last_uses=tuple(
            tuple(t for t, m in enumerate(terms) if g == max(_groups(m))) for g in indices
        ),
        coupled=tuple(any(m.is_coupled and m.rows == g for m in terms) for g in indices),
    )


def _terms(
    layer: Layer,
    coefficient: float,
    rows: int | None,
    columns: Sequence[tuple[int, Consumer]],
    sizes: Sequence[int],
) -> Iterator[Term]:
    """Terms of one weight: one per group that divides columns of it, and what lies between."""
    end = 0
    for index, consumer in sorted(columns, key=lambda one: one[1].start):
        if rows is not None and consumer.start > end:
            yield Term(layer, coefficient, rows, None, 1, end, consumer.start - end)
        length = consumer.block * sizes[index]
        end = consumer.start + length
        # Scales of one group on both sides of a depthwise convolution cancel.
        if index != rows or layer.groups < sizes[index]:
            whole = length == layer.inputs
            part = (0, None) if whole else (consumer.start, length)
            yield Term(layer, coefficient, rows, index, consumer.block, *part)
    if rows is not None and end == 0:
        yield Term(layer, coefficient, rows, None)
    elif rows is not None and end < layer.inputs:
        yield Term(layer, coefficient, rows, None, 1, end, layer.inputs - end)


def _groups(term: Term) -> list[int]:
    return [group for group in (term.rows, term.columns) if group is not None]


class Scales:
    """The state of a solve: one vector ``z = log2 d`` per group (None stands for zeros).

    Args:
        problem: the problem.
        tensors: the parameters by name; they must not change while this object is in use.
        precision: representation of the masses.
        power_of_two: keep every ``z`` integral, so that ``d`` is exact in binary floating point.
        keep_masses: hold each weight's masses for the next cycle; False frees them after their
            last use in a cycle, so that two weights' worth of memory serves all.
        workspace: memory for the masses, to be used again by the next solve; None allocates.
    """

    def __init__(
        self,
        problem: Problem,
        tensors: Mapping[str, Tensor],
        *,
        precision: Precision,
        power_of_two: bool = False,
        keep_masses: bool = True,
        workspace: Workspace | None = None,
    ) -> None:
        self.problem = problem
        self.power_of_two = power_of_two
        self.z: list[Tensor | None] = [None] * len(problem.producers)
        self.steps: list[Tensor] = []
        self._tensors = tensors
        self.precision = precision
        self._keep_masses = keep_masses
        self._workspace = workspace or Workspace()
        self._masses: dict[int, Masses] = {}
        self._seen: list[Tensor] = []
        self._zeros_are_dead = True
        caps = [_cap([tensors[name] for name in names]) for names in problem.biases]
        self._caps = [cap if cap is None or not power_of_two else cap.floor() for cap in caps]

    def cycle(
        self,
        *,
        order: Order = "cyclic",
        omegas: Sequence[float] | None = None,
        first: int = 0,
    ) -> Tensor:
        """One pass over all groups; what each would move unrelaxed is in :attr:`steps` after it.

        Args:
            first: the group to begin with; those in front of it are left out.
            order: ``"cyclic"`` sees the groups already updated in this pass, ``"jacobi"`` none.
            omegas: over-relaxation of each group; None goes to the minimum and no further. Scales
                that are powers of two are never relaxed: a relaxed step may round to the far side
                of the minimum and raise the energy.

        Returns:
            ``(2,)`` float64 on the device: the largest ``|log d|`` that an unrelaxed update would
            apply (natural logarithm), and the number of units with a non-finite norm, which were
            left alone.
        """
        before = list(self.z)
        source = before if order == "jacobi" else self.z
        steps, norms = [], []
        for group in range(first, len(self.z)):
            producing, consuming = self._norms(group, source)
            step = self._step(group, producing, consuming, before[group])
            steps.append(step)
            norms.append(torch.maximum(producing, consuming))
            if omegas is not None and not self.power_of_two:
                step = step * omegas[group]
            self.z[group] = self._moved(group, before[group], step)
        self.steps = steps
        largest = torch.cat(steps).abs().amax() * math.log(2)
        nonfinite = torch.cat(norms)
        # NaN passes through maximum and compares false, so this counts NaN and +inf.
        return torch.stack([largest, (~(nonfinite < math.inf)).sum().double()])

    def move(self, z: Sequence[Tensor]) -> bool:
        """Go to ``z``, one vector per group, if no bias forbids it; whether it was done."""
        for cap, vector in zip(self._caps, z, strict=True):
            if cap is not None and bool((vector > cap).any()):
                return False
        self.z = list(z)
        return True

    def scales(self) -> list[Tensor]:
        """``log2 d`` per group that a cycle has moved, shape ``(size,)`` float64."""
        return [z for z in self.z if z is not None]

    def release(self) -> None:
        """Leave the workspace its memory; only :meth:`scales` may be asked after."""
        for masses in self._masses.values():
            masses.release()
        self._masses.clear()

    def residual(self) -> float:
        """The largest ``|log d|`` that one more cyclic pass would apply; synchronises."""
        kept = list(self.z)
        largest = self.cycle()[0].item()
        self.z = kept
        return largest

    def lost_range(self) -> bool:
        """Whether the representation was too narrow for a sum since the last call; synchronises."""
        for masses in self._masses.values():
            self._collect(masses)
        seen, self._seen = self._seen, []
        if not seen:
            return False
        return bool(lost_range(seen, zeros_are_dead=self._zeros_are_dead))

    def _norms(self, group: int, z: Sequence[Tensor | None]) -> tuple[Tensor, Tensor]:
        """``log2`` of ``P = Σ_producers c_k L^p`` and ``Q = Σ_consumers c_k R^p`` without own d."""
        terms = self.problem.terms
        producing, consuming = [], []
        for index in self.problem.producers[group]:
            column = terms[index].columns
            mass = self._mass(index).rows(None if column is None else z[column])
            producing.append(mass + terms[index].log2_coefficient)
        for index in self.problem.consumers[group]:
            row = terms[index].rows
            mass = self._mass(index).columns(None if row is None else z[row])
            consuming.append(mass + terms[index].log2_coefficient)
        if not self._keep_masses:
            for index in self.problem.last_uses[group]:
                masses = self._masses.pop(index)
                self._collect(masses)
                masses.release()
        combine = torch.maximum if self.problem.p == math.inf else torch.logaddexp2
        return reduce(combine, producing), reduce(combine, consuming)

    def _step(
        self, group: int, producing: Tensor, consuming: Tensor, current: Tensor | None
    ) -> Tensor:
        """``z* − z`` of one group; zero for dead and for non-finite units."""
        step = (consuming - producing).mul_(0.5 / self.problem.power)
        if current is not None:
            step.sub_(current)
        if self.problem.coupled[group]:
            step.mul_(0.5)
        # A dead unit has log2 of zero, −inf, on a side; infinite or NaN norms end here as well.
        step.nan_to_num_(0.0, 0.0, 0.0)
        if (cap := self._caps[group]) is not None:
            step = torch.minimum(step, cap if current is None else cap - current)
        if self.power_of_two:
            # Ties stay: to move by half a power of two and back would change nothing for ever.
            step = torch.sign(step) * torch.ceil(step.abs() - (0.5 + 1e-9))
        return step

    def _moved(self, group: int, current: Tensor | None, step: Tensor) -> Tensor:
        moved = step if current is None else current + step
        cap = self._caps[group]
        return moved if cap is None else torch.minimum(moved, cap)

    def _mass(self, index: int) -> Masses:
        if index not in self._masses:
            term, p = self.problem.terms[index], self.problem.p
            once = not self._keep_masses
            self._masses[index] = term.masses(
                self._tensors, p, self.precision, self._workspace, once=once
            )
        return self._masses[index]

    def _collect(self, masses: Masses) -> None:
        self._seen += masses.seen
        masses.seen = []
        self._zeros_are_dead &= masses.zeros_are_dead


def _cap(biases: Sequence[Tensor]) -> Tensor | None:
    """Largest ``z`` that keeps every bias finite in its own dtype, with a factor 2 to spare."""
    if not biases:
        return None
    caps = [
        math.log2(torch.finfo(bias.dtype).max) - 1 - _whole(bias).detach().double().abs().log2()
        for bias in biases
    ]
    # A bias of zero, infinity or NaN caps nothing; none forces a scale below 1.
    unlimited = math.inf
    return torch.stack(caps).nan_to_num(unlimited, unlimited, unlimited).amin(0).clamp_(min=0)


def _whole(vector: Tensor) -> Tensor:
    """All of it, if processes hold parts."""
    rows = rows_of(vector)
    if rows is None or rows.group is None:
        return local(vector)
    return rows.gathered(local(vector).detach())
