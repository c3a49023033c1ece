"""Over-relaxation: how much further than to its minimum each group goes in a cycle.

Groups are coupled when a weight has one on its rows and another on its columns; what is coupled,
directly or not, is a component and has one ω. With the Hessian's diagonal blocks scaled to one,
the Jacobi iteration of a component has a spectral radius μ, and the ω that converges fastest is
``2 / (1 + sqrt(1 − μ²))`` (Young 1971, for consistently ordered matrices). A chain of q weights has
``μ = cos(π / q)`` whatever its weights. Elsewhere μ is read off the cycles themselves: once their
steps shrink by a steady factor λ, ``μ = (λ + ω − 1) / (ω sqrt(λ))`` (Hageman and Young 1981, §9.2).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from enorm._solve import Problem

# Cycles after a change of ω before their factor is trusted, and how steady it has to be by then.
_SETTLING = 3
_STEADY = 0.1


@dataclass
class Component:
    """Coupled groups and their ω; ``is_chain`` says that it is known from the start."""

    groups: tuple[int, ...]
    is_chain: bool
    omega: float
    _norms: list[float] = field(default_factory=list, repr=False)

    def observe(self, norm: float) -> None:
        """Take the norm of an unrelaxed step of a cycle into account."""
        self._norms.append(norm)
        if len(self._norms) < _SETTLING + 2 or not 0 < norm < self._norms[-2]:
            return
        older, old, new = self._norms[-3:]
        factor, before = new / old, old / older
        # At the best ω and beyond all factors are ω − 1, and oscillate: nothing is to be learned.
        if factor <= self.omega - 1 or abs(factor - before) > _STEADY * (1 - factor):
            return
        mu = min((factor + self.omega - 1) / (self.omega * math.sqrt(factor)), 1 - 1e-9)
        omega = 2 / (1 + math.sqrt(1 - mu * mu))
        if omega > self.omega:
            self.omega = omega
            self._norms.clear()


class Relaxation:
    """ω of every group, learned on the way where it is not known.

    Attributes:
        components: in the order of their first group.
    """

    def __init__(self, problem: Problem) -> None:
        self.components = _components(problem)

    @property
    def omegas(self) -> list[float]:
        """One per group."""
        found = {group: one.omega for one in self.components for group in one.groups}
        return [found[group] for group in range(len(found))]

    def observe(self, steps: Sequence[Tensor]) -> None:
        """Learn from the unrelaxed steps of a cycle, one vector per group; may synchronise."""
        learning = [one for one in self.components if not one.is_chain]
        if learning:
            norms = [torch.cat([steps[group] for group in one.groups]).norm() for one in learning]
            for one, norm in zip(learning, torch.stack(norms).tolist(), strict=True):
                one.observe(norm)


def _components(problem: Problem) -> list[Component]:
    count = len(problem.producers)
    neighbours: list[set[int]] = [set() for _ in range(count)]
    members = [0] * count
    for term in problem.terms:
        for group in (term.rows, term.columns):
            if group is not None:
                members[group] += 1
        if term.rows is not None and term.columns is not None and not term.is_coupled:
            neighbours[term.rows].add(term.columns)
            neighbours[term.columns].add(term.rows)
    found: list[Component] = []
    seen: set[int] = set()
    for start in range(count):
        if start in seen:
            continue
        groups, frontier = {start}, [start]
        while frontier:
            fresh = neighbours[frontier.pop()] - groups
            groups |= fresh
            frontier += fresh
        seen |= groups
        edges = sum(len(neighbours[group]) for group in groups) // 2
        is_chain = edges == len(groups) - 1 and all(
            len(neighbours[group]) <= 2 and members[group] == 2 for group in groups
        )
        omega = 2 / (1 + math.sin(math.pi / (len(groups) + 1))) if is_chain else 1.0
        found.append(Component(tuple(sorted(groups)), is_chain, omega))
    return found
