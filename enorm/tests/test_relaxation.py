"""Every single update, relaxed or not; and rates where a unit has several readers."""

from __future__ import annotations

import copy
import itertools
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

import enorm
from enorm._plan import tensors_of
from enorm._relax import Relaxation
from enorm._solve import Order, Scales, build_problem
from properties.convex import ConvexEnergy, Term, convex_energy, from_terms
from properties.specs import Net
from properties.strategies import C_FACTORS, P_NORMS, nets
from properties.test_rate import STEP, iteration_matrix

LIVE = nets(dtypes=st.just("float64"), dead=False, max_decades=1.0)


class Recorded(Scales):
    """Notes the energy after every update of a group."""

    def __init__(self, net: Net, p: float, c: float) -> None:
        model = net.build()
        plan = enorm.trace(model)
        super().__init__(build_problem(plan, p, c), tensors_of(model, plan), precision="log")
        self.sizes = [group.size for group in plan.groups]
        self.convex = convex_energy(model, p, c)
        self.energies = [self.convex.value(np.zeros(self.convex.size))]

    def _moved(self, group: int, current: Tensor | None, step: Tensor) -> Tensor:
        moved = super()._moved(group, current, step)
        now = [moved if index == group else z for index, z in enumerate(self.z)]
        log_d = [
            torch.zeros(size) if z is None else z * math.log(2)
            for z, size in zip(now, self.sizes, strict=True)
        ]
        self.energies.append(self.convex.value(torch.cat(log_d).double().numpy()))
        return moved


@given(LIVE, P_NORMS, C_FACTORS, st.booleans())
def test_no_update_raises_the_energy(net: Net, p: float, c: float, relax: bool) -> None:
    """Over-relaxation too: for 0 < ω < 2 the end lies nearer to the minimum along its group."""
    model = net.build()
    plan = enorm.trace(model)
    if not plan.groups:
        return
    scales = Recorded(net, p, c)
    omegas = Relaxation(scales.problem).omegas if relax else None
    for _ in range(3):
        scales.cycle(omegas=omegas)
    assert len(scales.energies) == 1 + 3 * len(plan.groups)
    for before, after in zip(scales.energies, scales.energies[1:], strict=False):
        assert after <= before * (1 + 1e-12), f"{scales.energies}\n{net!r}"


class Branches(nn.Module):
    """One hidden layer read by two others, a BatchNorm in one of the branches."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        self.stem = nn.Linear(3, 4)
        self.left = nn.Linear(4, 5)
        self.right = nn.Linear(4, 3)
        self.norm = nn.BatchNorm1d(3)
        self.left_head = nn.Linear(5, 2)
        self.right_head = nn.Linear(3, 2)
        generator = torch.Generator().manual_seed(seed)
        for parameter in self.parameters():
            nn.init.normal_(parameter, generator=generator)

    def forward(self, x: Tensor) -> Tensor:
        """The sum of both heads."""
        h = F.relu(self.stem(x))
        left: Tensor = self.left_head(F.relu(self.left(h)))
        right: Tensor = self.right_head(F.relu(self.norm(self.right(h))))
        return left + right


def energy_of(plan: enorm.Plan, model: nn.Module, p: float, c: float) -> ConvexEnergy:
    """The plan's energy over ``log d``, for scipy and numpy."""
    rows, columns, offset = {}, {}, 0
    for group in plan.groups:
        rows.update({producer.weight: offset for producer in group.producers})
        columns.update({consumer.weight: offset for consumer in group.consumers})
        offset += group.size
    terms = []
    for layer in plan.layers:
        weight = np.abs(model.get_parameter(layer.weight).detach().double().numpy()) ** p
        masses = weight.reshape(len(weight), -1)
        factor = c ** (p * (plan.depth - layer.depth))
        terms.append(Term(factor, masses, rows.get(layer.weight), columns.get(layer.weight)))
    return from_terms(terms, offset, p)


@pytest.mark.parametrize(("p", "c"), [(2.0, 1.0), (1.0, 1.2), (3.0, 0.8)])
@pytest.mark.parametrize("order", ["cyclic", "jacobi"])
def test_branches_contract_as_the_hessian_says(p: float, c: float, order: Order) -> None:
    """A unit with several readers: same minimum as scipy's, and the predicted linear map."""
    model = Branches(5).double().eval()
    plan = enorm.trace(model)
    assert [[c.module for c in group.consumers] for group in plan.groups] == [
        *[["left", "right"], ["left_head"], ["right_head"]]
    ]
    before = copy.deepcopy(model)
    result = enorm.balance_(model, p=p, c=c, tol=1e-13)
    lowest, _ = energy_of(plan, before, p, c).minimum()
    assert result.energy_after == pytest.approx(lowest, rel=1e-10)
    assert enorm.verify(before, model, torch.randn(6, 3, dtype=torch.float64)).ok
    problem = energy_of(plan, model, p, c)
    hessian = problem.hessian(np.zeros(problem.size))
    direction = np.random.default_rng(1).uniform(-1, 1, problem.size)
    displaced = copy.deepcopy(model)
    left = torch.from_numpy(np.exp(STEP * direction))
    with torch.no_grad():
        for group in plan.groups:
            d, left = left[: group.size], left[group.size :]
            for producer in group.producers:
                weight = displaced.get_parameter(producer.weight)
                weight.mul_(d.view(-1, *[1] * (weight.dim() - 1)))
                assert producer.bias is not None
                displaced.get_parameter(producer.bias).mul_(d)
            for consumer in group.consumers:
                displaced.get_parameter(consumer.weight).div_(d)
    enorm.ENorm(displaced, p=p, c=c, order=order).step()
    # Biases take part in no norm, so they show the scales themselves.
    biases = [producer.bias for group in plan.groups for producer in group.producers]
    moved = torch.cat(
        [displaced.get_parameter(name) / model.get_parameter(name) for name in biases if name]
    )
    found = moved.detach().log().numpy() / STEP
    predicted = iteration_matrix(hessian, order) @ direction
    assert np.abs(found - predicted).max() <= 3 * p * STEP / 2
    # What the rate is for a graph: the spectral radius, whatever π/q may say of chains.
    eigenvalues = np.abs(np.linalg.eigvals(iteration_matrix(hessian, order)))
    assert eigenvalues.max() < 1


class Arms(nn.Module):
    """A stem of ``depth`` layers read by two arms of as many: a tree of groups, not a chain."""

    def __init__(self, depth: int, seed: int) -> None:
        super().__init__()
        torch.manual_seed(seed)

        def layers(first: int) -> nn.Sequential:
            sizes = [first, *[12] * depth]
            pairs = itertools.pairwise(sizes)
            return nn.Sequential(
                *[part for a, b in pairs for part in (nn.Linear(a, b, bias=False), nn.ReLU())]
            )

        self.stem = layers(6)
        self.arms = nn.ModuleList(nn.Sequential(layers(12), nn.Linear(12, 3)) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        """The sum of both arms."""
        h = self.stem(x)
        left: Tensor = self.arms[0](h)
        right: Tensor = self.arms[1](h)
        return left + right


@pytest.mark.parametrize("seed", [0, 1])
def test_trees_learn_their_relaxation(seed: int) -> None:
    """Nearly as few cycles as with Young's ω for μ of the Hessian at the minimum."""
    model = Arms(5, seed).double()
    plan = enorm.trace(model)
    problem = build_problem(plan, 2.0, 1.0)
    convex = energy_of(plan, model, 2.0, 1.0)
    _, log_d = convex.minimum()
    jacobi = iteration_matrix(convex.hessian(log_d), "jacobi")
    mu = np.abs(np.linalg.eigvals(jacobi)).max()
    assert [one.is_chain for one in Relaxation(problem).components] == [False]
    best = [2 / (1 + math.sqrt(1 - mu**2))] * len(plan.groups)
    scales, known = Scales(problem, tensors_of(model, plan), precision="float64"), 1
    while scales.cycle(omegas=best)[0] > 1e-10:
        known += 1
    cycles = {
        solver: enorm.balance_(Arms(5, seed).double(), solver=solver, tol=1e-10).cycles
        for solver in ("sor", "cyclic")
    }
    assert cycles["sor"] <= 1.5 * known, (cycles, known)
    assert cycles["sor"] < cycles["cyclic"] / 3


def test_every_chain_of_a_network_is_relaxed_for_its_own_length() -> None:
    """Three weights before a wall and four behind it; q is theirs, not the network's."""
    linear = [nn.Linear(4, 4) for _ in range(7)]
    model = nn.Sequential(
        *(linear[0], nn.ReLU(), linear[1], nn.ReLU(), linear[2], nn.GELU()),
        *(linear[3], nn.ReLU(), linear[4], nn.ReLU(), linear[5], nn.ReLU(), linear[6]),
    )
    omegas = Relaxation(build_problem(enorm.trace(model), 2.0, 1.0)).omegas
    assert omegas == pytest.approx([2 / (1 + math.sin(math.pi / q)) for q in (3, 3, 4, 4, 4)])
