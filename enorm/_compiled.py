"""The same step as tensor code that ``torch.compile`` turns into few kernels.

A cycle in :mod:`enorm._cycle` is a chain of small operations, each of which reads or writes a whole
weight and is started from Python. Here each weight's sums are one pass over it, its scaling is one
pass, and Python starts the whole once: generated C++ on a CPU, Triton kernels on a GPU, where a
CUDA graph may capture it.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from enorm._apply import NARROW, Factors, Target, following, write_
from enorm._cycle import Coefficients, at, coefficients_of, trusted, weighted
from enorm._followers import Followers
from enorm._layout import along_columns, along_rows, canonical, flattened
from enorm._solve import Order, Problem, Term


def compiled(function: Callable[..., Any], *example: Any) -> Callable[..., Any]:
    """``function`` for tensors of the shapes of ``example``, which stay as they are.

    It is recorded as a graph of tensor operations first: the compiler then has nothing of Python to
    watch, and its limit on versions of one function does not count those of other models.
    """
    # Few users come here, and importing it takes a while.
    from torch.fx.experimental.proxy_tensor import make_fx

    graph = make_fx(function, tracing_mode="fake")(*example)
    return torch.compile(graph, fullgraph=True, dynamic=False)


class CompiledCycles:
    """Cycles over the weights as they are at each call.

    Args:
        problem: the problem; p finite.
        tensors: the parameters by name, none of them sharded.
        dtype: of masses and scales.
        cycles: how many a call runs.
        order: ``"cyclic"`` or ``"jacobi"``.
        counter: where units with a norm that is not finite are counted; they and dead units are
            left alone, and ``dtype`` has to hold all others. None looks at the range of all sums
            instead, which waits for the device.

    Raises:
        ValueError: without checks, coefficients within a group leave too little range.
    """

    def __init__(
        self,
        problem: Problem,
        tensors: Mapping[str, Tensor],
        dtype: torch.dtype,
        *,
        cycles: int,
        order: Order,
        counter: Tensor | None = None,
    ) -> None:
        self._problem = problem
        self._dtype = dtype
        self._cycles = cycles
        self._jacobi = order == "jacobi"
        self._counter = counter
        self._coefficients: Coefficients | None = coefficients_of(problem)
        if counter is not None and self._coefficients is None:
            raise ValueError(
                "compile=True needs factors c_k of one group within 2^40 of each other after they "
                "are raised to p: use a c nearer to 1, or compile=False"
            )
        self._tensors = [tensors[term.weight] for term in problem.terms]
        self._tensors += [tensors[name] for names in problem.biases for name in names]
        self._run: Callable[..., Any] | None = None

    def __call__(self) -> list[Tensor] | None:
        """``log2 d`` per group, ``(size,)`` float64, or None where the dtype is too narrow."""
        if self._coefficients is None:
            return None
        given = [one.detach() for one in self._tensors]
        if self._run is None:
            self._run = compiled(lambda *tensors: self._scales(tensors), *given)
        *z, extremes, bad = self._run(*given)
        if self._counter is not None:
            self._counter += bad
        elif not trusted(self._dtype, *extremes.tolist()):
            return None
        return list(z)

    def _scales(self, tensors: Sequence[Tensor]) -> tuple[Tensor, ...]:
        problem, p = self._problem, self._problem.p
        assert self._coefficients is not None
        weights, rest = tensors[: len(problem.terms)], iter(tensors[len(problem.terms) :])
        biases = [list(itertools.islice(rest, len(names))) for names in problem.biases]
        masses = [
            _Masses(term, weight, p, self._dtype)
            for term, weight in zip(problem.terms, weights, strict=True)
        ]
        caps = [self._cap(of_group) for of_group in biases]
        scales: list[Tensor | None] = [None] * len(problem.producers)
        inverses = list(scales)
        sums: list[Tensor] = []
        bad = weights[0].new_zeros((), dtype=torch.int64)
        for _ in range(self._cycles):
            s, r = (list(scales), list(inverses)) if self._jacobi else (scales, inverses)
            for group, coefficients in enumerate(self._coefficients):
                producers, consumers = problem.producers[group], problem.consumers[group]
                produced = [masses[t].row_sums(at(r, problem.terms[t].columns)) for t in producers]
                consumed = [masses[t].column_sums(at(s, problem.terms[t].rows)) for t in consumers]
                sums += [*produced, *consumed]
                p_mass = weighted(produced, [coefficients[t] for t in producers])
                q_mass = weighted(consumed, [coefficients[t] for t in consumers])
                current = s[group]
                scale = torch.sqrt(q_mass / p_mass)
                if problem.coupled[group]:
                    scale = (scale if current is None else scale * current).sqrt()
                if self._counter is not None:
                    finite = torch.maximum(p_mass, q_mass) < math.inf
                    bad = bad + (~finite).sum()
                    alive = finite & (torch.minimum(p_mass, q_mass) > 0)
                    scale = torch.where(alive, scale, 1.0 if current is None else current)
                    if (cap := caps[group]) is not None:
                        scale = torch.minimum(scale, cap)
                scales[group], inverses[group] = scale, scale.reciprocal()
        found = [scale for scale in scales if scale is not None]
        z = (scale.double().log2() / p for scale in found)
        return *z, self._extremes(found, sums, biases), bad

    def _cap(self, biases: Sequence[Tensor]) -> Tensor | None:
        """Largest ``s`` that keeps every bias of a group finite, with a factor 2 to spare."""
        if self._counter is None or not biases:
            return None
        caps = []
        for bias in biases:
            largest = bias.to(self._dtype).abs()
            cap = (torch.finfo(bias.dtype).max / 2 / largest).clamp(min=1.0).pow(self._problem.p)
            # A bias of zero or NaN caps nothing.
            caps.append(torch.where(largest > 0, cap, math.inf))
        return torch.stack(caps).amin(0)

    def _extremes(
        self, scales: Sequence[Tensor], sums: Sequence[Tensor], biases: Sequence[Sequence[Tensor]]
    ) -> Tensor:
        """What :func:`enorm._cycle.trusted` looks at."""
        if self._counter is not None:
            return scales[0].new_zeros(())
        together, seen = torch.cat(list(scales)), torch.cat(list(sums))
        # How many times each bias could still be taken.
        room = [
            together.new_zeros(()),
            *(
                bias.abs().amax().to(self._dtype) / (torch.finfo(bias.dtype).max / 2)
                for of_group in biases
                for bias in of_group
            ),
        ]
        growth = together.amax().clamp(min=1.0).pow(1 / self._problem.p)
        parts = [together.amin(), together.amax(), seen.amin(), seen.amax()]
        return torch.stack([*parts, torch.stack(room).amax() * growth])


class _Masses:
    """Sums over ``|W|^p`` of one weight, for a compiler to fuse; nothing is kept."""

    def __init__(self, term: Term, weight: Tensor, p: float, dtype: torch.dtype) -> None:
        self._has_rows, self._has_columns = term.rows is not None, term.columns is not None
        view = canonical(weight, term.layer)
        if term.length is not None:
            view = view.narrow(1, term.start, term.length)
        wide = view.to(dtype)
        powers = wide.square() if p == 2 else wide.abs() if p == 1 else wide.abs().pow(p)
        self._diagonal = weight.dim() == 1
        self._entries = 1
        if not self._diagonal:
            lead = 2 if term.layer.groups > 1 else 1
            columns = powers.shape[lead] // term.block
            powers = powers.flatten(lead)
            self._entries = powers.shape[-1] // columns
            if term.is_coupled:
                units = torch.arange(powers.shape[-1], device=weight.device) // self._entries
                rows = torch.arange(powers.shape[-2], device=weight.device)
                powers = torch.where(rows[:, None] == units, 0.0, powers)
        self._powers = powers

    def row_sums(self, factors: Tensor | None) -> Tensor:
        """``Σ_j M[i, j] f_j``, shape ``(out,)``."""
        if self._diagonal:
            return self._powers
        powers = self._powers
        if factors is not None:
            by_entry = expanded(factors, self._entries)
            grouped = powers.dim() > 2
            powers = powers * (by_entry.view(len(powers), 1, -1) if grouped else by_entry)
        return powers.sum(-1).flatten()

    def column_sums(self, factors: Tensor | None) -> Tensor:
        """``Σ_i M[i, j] f_i``, shape ``(units,)``."""
        if self._diagonal:
            return self._powers
        powers = self._powers
        if factors is not None:
            powers = powers * factors.view(*powers.shape[:-1], 1)
        sums = powers.sum(-2).flatten()
        if self._entries == 1:
            return sums
        # A matrix product, for the compiler does it apart, not inside the pass over the weight.
        return torch.mv(sums.view(-1, self._entries), sums.new_ones(self._entries))


def expanded(vector: Tensor, entries: int) -> Tensor:
    """Each entry ``entries`` times.

    As a matrix product, which is done apart: inside a pass over the weight the compiler would look
    every factor up anew, one by one.
    """
    if entries == 1:
        return vector
    return torch.mm(vector[:, None], vector.new_ones(1, entries)).flatten()


@dataclass(frozen=True)
class _Task:
    """A tensor to scale by ``d`` to some power, in its own dtype or rounded once from a wider."""

    target: Target
    power: int
    dtype: torch.dtype


_FULL = (torch.float32, torch.float64)


class CompiledWrite:
    """Multiplies producers by ``2^z`` and divides consumers by it, each tensor in one pass.

    Args:
        targets: from :func:`enorm._apply.targets_of`.
    """

    def __init__(self, targets: Sequence[Target]) -> None:
        self._targets = targets
        self._made: dict[tuple[tuple[str, int, torch.dtype], ...], Callable[..., None]] = {}

    def __call__(
        self,
        tensors: Mapping[str, Tensor],
        z: Sequence[Tensor],
        followers: Followers | None = None,
        *,
        moderate: bool = False,
        inverse: Collection[str] = (),
    ) -> None:
        """As :func:`enorm._apply.write_`."""
        on_cpu = z[0].device.type == "cpu"
        if on_cpu and not moderate:
            # Factors of such scales may be out of every dtype's range, one by one.
            write_(self._targets, tensors, z, followers, inverse=inverse)
            return
        factors = Factors(z)
        widest = factors.exponents.abs().amax().item() if on_cpu else math.inf
        given: list[Tensor] = []
        key: list[tuple[str, int, torch.dtype]] = []
        for target in self._targets:
            name = target.name
            for tensor, power in (
                (tensors[name], 1),
                *following(target, tensors, followers, inverse),
            ):
                narrow = tensor.dtype in _FULL and abs(power) * widest <= NARROW
                given.append(tensor.detach())
                key.append((name, power, tensor.dtype if narrow else torch.float64))
        # Outside of the compiled part, which would work them out anew for every entry of a weight.
        pairs = list(
            dict.fromkeys((sign * power, dtype) for _, power, dtype in key for sign in (1, -1))
        )
        vectors = [factors.whole(*pair) for pair in pairs]
        if tuple(key) not in self._made:
            targets = {target.name: target for target in self._targets}
            tasks = [_Task(targets[name], power, dtype) for name, power, dtype in key]
            sizes = factors.sizes

            def write(*tensors: Tensor) -> None:
                made = dict(zip(pairs, tensors[len(tasks) :], strict=True))
                by_group = {pair: one.split(sizes) for pair, one in made.items()}
                _scale_(tasks, tensors[: len(tasks)], by_group)

            self._made[tuple(key)] = compiled(write, *given, *vectors)
        self._made[tuple(key)](*given, *vectors)


def _scale_(
    tasks: Sequence[_Task],
    tensors: Sequence[Tensor],
    factors: Mapping[tuple[int, torch.dtype], Sequence[Tensor]],
) -> None:
    for task, tensor in zip(tasks, tensors, strict=True):
        multiply, divide = (factors[sign * task.power, task.dtype] for sign in (1, -1))
        target = task.target
        view, entries = flattened(target.view(tensor), target.groups)
        factor: Tensor | None = None
        if target.rows is not None:
            factor = along_rows(multiply[target.rows], view, target.groups)
        if target.columns:
            of_columns = expanded(target.column_vector(divide, 1.0), entries)
            divisor = along_columns(of_columns, view, target.groups)
            factor = divisor if factor is None else factor * divisor
        assert factor is not None
        if task.dtype is tensor.dtype:
            view.mul_(factor)
        else:
            view.copy_(view.to(task.dtype) * factor)
