"""The same step as tensor code that ``torch.compile`` turns into few kernels.

A cycle in :mod:`enorm._cycle` is a chain of small operations, each of which reads or writes a whole
weight and is started from Python. Here each weight's sums are one pass over it, its scaling is one
pass, and Python starts the whole once: generated C++ on a CPU, Triton kernels on a GPU, where a
CUDA graph may capture it. The compiler likes to work small things out anew wherever they are used;
what is a matrix product or an exponential here would otherwise be done for every weight.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from enorm._apply import NARROW, Factors, Job, Target, write_
from enorm._cycle import coefficients_of, range_of, weighted
from enorm._layout import along_columns, along_rows, flattened
from enorm._solve import Order, Problem, Term

# As many streams of memory as processors foresee.
_ROWS_AT_ONCE = range(8, 17)


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
    """Cycles over the weights as they are at each call, which it changes, as one compiled graph.

    Sums are over weights as the scales so far make them, and each weight is written once, as soon
    as its last scales are known.

    Args:
        problem: the problem; p finite.
        targets: the parameters that scale, none of them sharded.
        tensors: the parameters by name.
        dtype: of sums and scales.
        cycles: how many a call runs.
        order: ``"cyclic"`` or ``"jacobi"``.
        counter: where units with a norm that is not finite are counted; they and dead units are
            left alone, and ``dtype`` has to hold all others. None looks at the range of all sums
            instead, which waits for the device.

    Raises:
        ValueError: coefficients within a group leave too little range.
    """

    def __init__(
        self,
        problem: Problem,
        targets: Sequence[Target],
        tensors: Mapping[str, Tensor],
        dtype: torch.dtype,
        *,
        cycles: int,
        order: Order,
        counter: Tensor | None = None,
    ) -> None:
        coefficients = coefficients_of(problem)
        if coefficients is None:
            raise ValueError(
                "compile=True needs factors c_k of one group within 2^40 of each other after they "
                "are raised to p: use a c nearer to 1, or compile=False"
            )
        self._problem = problem
        self._targets = targets
        self._tensors = [tensors[target.name] for target in targets]
        self._dtype = dtype
        self._cycles = cycles
        self._jacobi = order == "jacobi"
        self._counter = counter
        self._coefficients = coefficients
        # With more than one cycle a group that cannot be done would come too late.
        self._goes_on = cycles == 1 and order == "cyclic"
        # Recorded for the strides that the parameters had.
        self._run: Callable[..., Any] | None = None
        self._strides: list[tuple[int, ...]] = []

    def __call__(self) -> list[Tensor]:
        """``log2 d``, ``(size,)`` float64, of the groups up to the first that it could not do."""
        given = [one.detach() for one in self._tensors]
        strides = [one.stride() for one in given]
        if self._run is None or strides != self._strides:
            self._strides = strides
            self._run = compiled(lambda *tensors: self._sweep(tensors), *given)
        # What follows was returned for the compiler's sake.
        number, *z = self._run(*given)[: 1 + len(self._problem.producers)]
        if self._counter is None:
            return list(z[: int(number)])
        self._counter += number
        return list(z)

    def _sweep(self, given: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Writes the scales; returns how many groups were done, and the logarithms.

        Without checks the number is that of units that are not finite. All inverse scales are
        returned too: so the compiler keeps them, and does not divide anew for every weight.
        """
        problem = self._problem
        tensors = dict(zip((target.name for target in self._targets), given, strict=True))
        weights = [
            _Weight(term, tensors[term.weight], problem.p, self._dtype) for term in problem.terms
        ]
        biases = [[tensors[name] for name in names] for names in problem.biases]
        scales: list[_Scale | None] = [None] * len(problem.producers)
        ok = self._biases_have_room([bias for of_group in biases for bias in of_group], given[0])
        done: list[Tensor] = []
        inverses: list[Tensor] = []
        bad = given[0].new_zeros((), dtype=torch.int64)
        for _ in range(self._cycles):
            seen = list(scales) if self._jacobi else scales
            for group, coefficients in enumerate(self._coefficients):
                producers, consumers = problem.producers[group], problem.consumers[group]
                p_mass = weighted(
                    [weights[t].row_sums(seen) for t in producers],
                    [coefficients[t] for t in producers],
                )
                q_mass = weighted(
                    [weights[t].column_sums(seen) for t in consumers],
                    [coefficients[t] for t in consumers],
                )
                power = 0.25 if problem.coupled[group] else 0.5
                # Not as a power: the compiler works an exponential out once, and not anew for
                # every weight that it multiplies.
                d = torch.exp(torch.log(q_mass / p_mass) * (power / problem.p))
                current = seen[group]
                if self._counter is None:
                    ok = ok & _held(p_mass, q_mass, problem.p)
                    done.append(ok)
                    if self._goes_on:
                        d = torch.where(ok, d, 1.0)
                    d = d if current is None else current.multiply * d
                else:
                    finite = torch.maximum(p_mass, q_mass) < math.inf
                    bad = bad + (~finite).sum()
                    alive = finite & (torch.minimum(p_mass, q_mass) > 0)
                    d = torch.where(alive, d, 1.0)
                    d = d if current is None else current.multiply * d
                    if biases[group]:
                        d = torch.minimum(d, self._cap(biases[group]))
                inverses.append(d.reciprocal())
                scales[group] = _Scale(d, inverses[-1])
                if self._goes_on:
                    self._write(tensors, scales, group)
        found = [scale for scale in scales if scale is not None]
        number = torch.stack(done).sum() if self._counter is None else bad
        if not self._goes_on:
            if self._counter is None:
                together = torch.cat([scale.multiply for scale in found])
                ok = ok & (together.amin() >= 2**-NARROW) & (together.amax() <= 2**NARROW)
                found = [
                    _Scale(torch.where(ok, one.multiply, 1.0), torch.where(ok, one.divide, 1.0))
                    for one in found
                ]
                inverses += [scale.divide for scale in found]
                number = ok * len(found)
            for group in range(len(found)):
                self._write(tensors, found, group)
        return number, *(scale.multiply.double().log2() for scale in found), *inverses

    def _biases_have_room(self, biases: Sequence[Tensor], like: Tensor) -> Tensor:
        """Whether the widest scale keeps every bias finite, with a factor 2 to spare."""
        parts = [
            bias.abs().amax().to(self._dtype) * 2 ** (NARROW + 1) <= torch.finfo(bias.dtype).max
            for bias in biases
        ]
        return torch.stack([like.new_ones((), dtype=torch.bool), *parts]).all()

    def _cap(self, biases: Sequence[Tensor]) -> Tensor:
        """Largest ``d`` that keeps every bias of a group finite, with a factor 2 to spare."""
        caps = []
        for bias in biases:
            largest = bias.to(self._dtype).abs()
            cap = (torch.finfo(bias.dtype).max / 2 / largest).clamp(min=1.0)
            # A bias of zero or NaN caps nothing.
            caps.append(torch.where(largest > 0, cap, math.inf))
        return torch.stack(caps).amin(0)

    def _write(
        self, tensors: Mapping[str, Tensor], scales: Sequence[_Scale | None], group: int
    ) -> None:
        """Scale the parameters of which ``group`` is the last."""
        known = [scale for scale in scales if scale is not None]
        multiply, divide = ([*part] for part in zip(*known, strict=True))
        for target in self._targets:
            if group == target.last_group:
                scale_(target, tensors[target.name], multiply, divide)


class _Scale(NamedTuple):
    """``d`` of a group, and ``1 / d``."""

    multiply: Tensor
    divide: Tensor


class _Weight:
    """Sums over ``|W|^p`` of one weight, for a compiler to fuse; nothing is kept."""

    def __init__(self, term: Term, weight: Tensor, p: float, dtype: torch.dtype) -> None:
        self._term, self._p = term, p
        self._groups = term.layer.groups
        view, self._entries = term.matrices(weight)
        self._view: Tensor = view.to(dtype)
        self._axis = 2 if self._groups > 1 else 1
        self._kernel = tuple(range(self._axis + 1, view.dim()))

    def row_sums(self, scales: Sequence[_Scale | None]) -> Tensor:
        """``Σ_j M[i, j]``, shape ``(out,)``, of the weight as ``scales`` make it."""
        powers = self._powers(scales)
        if powers.dim() == 1:
            return powers
        return powers.sum((self._axis, *self._kernel)).flatten()

    def column_sums(self, scales: Sequence[_Scale | None]) -> Tensor:
        """``Σ_i M[i, j]``, shape ``(units,)``, of the weight as ``scales`` make it."""
        powers = self._powers(scales)
        if powers.dim() == 1:
            return powers
        if powers.dim() == 2 and powers.device.type == "cpu":
            sums: Tensor = powers.unflatten(0, (-1, rows_at_once(len(powers)))).sum(1).sum(0)
        else:
            sums = powers.sum((self._axis - 1, *self._kernel)).flatten()
        together = self._entries * self._term.block
        if together == 1:
            return sums
        # A matrix product, for the compiler does it apart, not inside the pass over the weight.
        total: Tensor = torch.mv(sums.view(-1, together), sums.new_ones(together))
        return total

    def _powers(self, scales: Sequence[_Scale | None]) -> Tensor:
        term, scaled = self._term, self._view
        if term.rows is not None and (of_rows := scales[term.rows]) is not None:
            scaled = scaled * along_rows(of_rows.multiply, scaled, self._groups)
        if term.columns is not None and (of_columns := scales[term.columns]) is not None:
            inverse = expanded(of_columns.divide, term.block * self._entries)
            scaled = scaled * along_columns(inverse, scaled, self._groups)
        p = self._p
        powers = scaled.square() if p == 2 else scaled.abs() if p == 1 else scaled.abs().pow(p)
        if not term.is_coupled:
            return powers
        axis = self._axis
        columns = torch.arange(powers.shape[axis], device=powers.device) // self._entries
        rows = torch.arange(powers.shape[axis - 1], device=powers.device)
        diagonal = rows[:, None] == columns
        return torch.where(diagonal.view(*diagonal.shape, *[1] * len(self._kernel)), 0.0, powers)


def _held(p_mass: Tensor, q_mass: Tensor, p: float) -> Tensor:
    """As :func:`enorm._cycle.holds`: a bool on the device."""
    masses = torch.cat([p_mass, q_mass])
    low, high = masses.amin(), masses.amax()
    least, most = range_of(masses.dtype)
    return (low > least) & (high < most) & (torch.log2(high / low) <= 2 * NARROW * p)


def rows_at_once(rows: int) -> int:
    """How many rows of a matrix a thread of a CPU sums at once, a divisor of them.

    Generated code goes through them column by column: so few that memory is read along each of
    them, and in such parts that each thread has the rows that it also has when it sums along them.
    """
    own = rows // math.gcd(rows, torch.get_num_threads())
    divisors = [n for n in range(1, own + 1) if own % n == 0]
    few = [n for n in divisors if n in _ROWS_AT_ONCE]
    # Fewer leave too many sums for the next pass.
    return few[-1] if few else next(n for n in divisors if n > _ROWS_AT_ONCE[-1] or n == own)


def expanded(vector: Tensor, entries: int) -> Tensor:
    """Each entry ``entries`` times.

    As a matrix product, which is done apart: inside a pass over the weight the compiler would look
    every factor up anew, one by one.
    """
    if entries == 1:
        return vector
    return torch.mm(vector[:, None], vector.new_ones(1, entries)).flatten()


_FULL = (torch.float32, torch.float64)
# Factors of up to 2^±500, and products of two of them, are within float64's range.
_WIDEST = 500.0


class CompiledWrite:
    """Multiplies producers by ``2^z`` and divides consumers by it, each tensor in one pass."""

    def __init__(self) -> None:
        self._made: dict[
            tuple[tuple[str, int, torch.dtype, tuple[int, ...]], ...], Callable[..., None]
        ] = {}

    def __call__(self, jobs: Sequence[Job], z: Sequence[Tensor]) -> None:
        """As a quick :func:`enorm._apply.write_`."""
        factors = Factors(z)
        on_cpu = z[0].device.type == "cpu"
        widest = factors.exponents.abs().amax().item() if on_cpu else math.inf
        if on_cpu and widest * max(abs(job.power) for job in jobs) > _WIDEST:
            write_(jobs, z)
            return
        # Of what a tensor is scaled in: its own dtype, or a wider one to be rounded once from.
        dtypes = [
            job.tensor.dtype
            if job.tensor.dtype in _FULL and abs(job.power) * widest <= NARROW
            else torch.float64
            for job in jobs
        ]
        # Outside of the compiled part, which would work them out anew for every entry of a weight.
        pairs = list(
            dict.fromkeys(
                (sign * job.power, dtype)
                for job, dtype in zip(jobs, dtypes, strict=True)
                for sign in (1, -1)
            )
        )
        given = [job.tensor.detach() for job in jobs] + [factors.whole(*pair) for pair in pairs]
        key = tuple(
            (job.target.name, job.power, dtype, job.tensor.stride())
            for job, dtype in zip(jobs, dtypes, strict=True)
        )
        if key not in self._made:
            tasks = [
                (job.target, job.power, dtype) for job, dtype in zip(jobs, dtypes, strict=True)
            ]
            sizes = factors.sizes

            def write(*tensors: Tensor) -> None:
                made = dict(zip(pairs, tensors[len(tasks) :], strict=True))
                by_group = {pair: one.split(sizes) for pair, one in made.items()}
                for (target, power, dtype), tensor in zip(tasks, tensors, strict=False):
                    scale_(target, tensor, by_group[power, dtype], by_group[-power, dtype])

            self._made[key] = compiled(write, *given)
        self._made[key](*given)


def scale_(
    target: Target, tensor: Tensor, multiply: Sequence[Tensor], divide: Sequence[Tensor]
) -> None:
    """Multiply a tensor by the vector of its rows' group and those of its columns' groups.

    In the vectors' dtype, rounded once; ``multiply`` and ``divide`` hold one vector per group.
    """
    view, entries = flattened(target.view(tensor), target.groups)
    factor: Tensor | None = None
    if target.rows is not None:
        factor = along_rows(multiply[target.rows], view, target.groups)
    if target.columns:
        of_columns = expanded(target.column_vector(divide, 1.0), entries)
        divisor = along_columns(of_columns, view, target.groups)
        factor = divisor if factor is None else factor * divisor
    assert factor is not None
    if factor.dtype is tensor.dtype:
        view.mul_(factor)
    else:
        view.copy_(view.to(factor.dtype) * factor)
