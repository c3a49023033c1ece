"""Each tolerance against Algorithm 1 run in ordinary arithmetic: does it hold, how loose is it?"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

import enorm
from properties import oracle, tolerances
from properties.adapters.plain import cycle_
from properties.specs import Net
from properties.strategies import C_FACTORS, P_NORMS, nets


@dataclass(frozen=True)
class Cycle:
    """A network before and after one cycle whose norms and weights are of its own dtype.

    ``energies`` are those before this cycle, after it, and after each of some more.
    """

    net: Net
    before: torch.nn.Sequential
    after: torch.nn.Sequential
    plan: enorm.Plan
    energies: tuple[float, ...]
    p: float
    c: float


def of_weights(cycle: Cycle) -> float:
    """Largest error of a weight against float64, over its tolerance."""
    dtype = cycle.net.torch_dtype
    expected = oracle.cycle(oracle.chain(cycle.before), cycle.p, cycle.c, "cyclic")
    bound = tolerances.stored_weight(dtype, oracle.fan_in(cycle.before))
    tiny = torch.finfo(dtype).smallest_normal / bound
    ratios = [
        ((mine - theirs).abs() / (theirs.abs() + tiny)).max().item() / bound
        for one, other in zip(oracle.chain(cycle.after), expected, strict=True)
        for mine, theirs in [(one.weight, other.weight)]
    ]
    return float(max(ratios))


def of_energy(cycle: Cycle) -> float:
    """Largest rise of the energy in a cycle, over what rounding explains."""
    dtype = cycle.net.torch_dtype
    weights = sum(parameter.numel() for parameter in cycle.before.parameters())
    largest = max(1.0, cycle.c) ** (cycle.p * (len(cycle.net.hidden) + 1))
    below = largest * tolerances.underflow(dtype, cycle.p, weights)
    allowed = tolerances.energy(dtype, cycle.p)
    rises = [
        max(0.0, then - now) / (now * allowed + below)
        for now, then in itertools.pairwise(cycle.energies)
    ]
    return float(max(rises))


def of_function(cycle: Cycle, training: bool = False) -> float:
    """Difference of an output, over the bound; zero where none is promised."""
    if not oracle.has_function(cycle.net, cycle.before, cycle.after):
        return 0.0
    inputs = cycle.net.draw_inputs()
    found = enorm.verify(cycle.before, cycle.after, inputs, plan=cycle.plan, training=training)
    return 0.0 if found.ratio is None else found.ratio


def of_train_mode(cycle: Cycle) -> float:
    """The same with the batch's own statistics."""
    return of_function(cycle, training=True)


BOUNDS: Mapping[str, Callable[[Cycle], float]] = {
    "a stored weight": of_weights,
    "the energy's rise": of_energy,
    "the function, eval mode": of_function,
    "the function, train mode": of_train_mode,
}


def ratios(dtype: str, examples: int) -> dict[str, list[float]]:
    """Measured ÷ bound over drawn networks, for each bound."""
    found: dict[str, list[float]] = {name: [] for name in BOUNDS}
    # Half precision is a matter of storing; sums of p-th powers would leave its range at once.
    accumulate = torch.float64 if dtype == "float64" else torch.float32
    few_decades = nets(dtypes=st.just(dtype), dead=False, max_decades=1.0)

    @settings(
        settings.get_profile("ci"), max_examples=examples, database=None, phases=[Phase.generate]
    )
    @given(few_decades, P_NORMS, C_FACTORS)
    def draw(net: Net, p: float, c: float) -> None:
        before = net.build()
        after = copy.deepcopy(before)
        cycle_(after, p, c, accumulate)
        energies = [oracle.energy(model, p, c) for model in (before, after)]
        further = copy.deepcopy(after)
        for _ in range(30):
            cycle_(further, p, c, accumulate)
            energies.append(oracle.energy(further, p, c))
        cycle = Cycle(net, before, after, enorm.trace(before), tuple(energies), p, c)
        for name, ratio in BOUNDS.items():
            found[name].append(ratio(cycle))

    draw()
    return found
