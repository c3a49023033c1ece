"""Newton's steps: the direction, the linear solve behind it, and what it promises of the energy."""

from __future__ import annotations

import copy
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

import enorm
from enorm._descent import Solver
from enorm._newton import Newton, solve_blocks
from enorm._plan import tensors_of
from enorm._solve import build_problem
from enorm.tests.test_relaxation import Arms, energy_of
from properties.convex import convex_energy
from properties.specs import Hidden, Net
from properties.strategies import C_FACTORS, P_NORMS, SEEDS, nets

LIVE = nets(dtypes=st.just("float64"), dead=False, max_decades=2.0)


def newton_of(model: nn.Module, p: float = 2.0, c: float = 1.0) -> tuple[Newton, list[Tensor]]:
    """And zero scales to start from."""
    plan = enorm.trace(model)
    zeros = [torch.zeros(group.size, dtype=torch.float64) for group in plan.groups]
    return Newton(build_problem(plan, p, c), tensors_of(model, plan)), zeros


def log_d(z: list[Tensor]) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    return (torch.cat(z) * math.log(2)).numpy()


def he(depth: int, width: int, spread: float = 0.0) -> nn.Sequential:
    """A chain, He-uniform, its hidden units then rescaled by ``exp(spread · N(0, 1))``."""
    generator = torch.Generator().manual_seed(depth)
    modules: list[nn.Module] = []
    for layer in range(depth + 2):
        linear = nn.Linear(width, width, bias=False, dtype=torch.float64)
        nn.init.kaiming_uniform_(linear.weight, nonlinearity="relu", generator=generator)
        modules += [linear, nn.ReLU()] if layer <= depth else [linear]
    with torch.no_grad():
        for layer in range(0, 2 * depth + 2, 2):
            d = torch.exp(spread * torch.randn(width, generator=generator, dtype=torch.float64))
            modules[layer].get_parameter("weight").mul_(d[:, None])
            modules[layer + 2].get_parameter("weight").div_(d)
    return nn.Sequential(*modules)


@given(LIVE, P_NORMS, C_FACTORS)
def test_steps_never_raise_the_energy(net: Net, p: float, c: float) -> None:
    """From wherever they start, near the minimum or far away."""
    model = net.build()
    if not enorm.trace(model).groups:
        return
    newton, z = newton_of(model, p, c)
    convex = convex_energy(model, p, c)
    before = convex.value(log_d(z))
    for _ in range(6):
        stepped = newton.step(z)
        if stepped is None:
            return
        z, after = stepped, convex.value(log_d(stepped))
        assert after <= before * (1 + 1e-12), f"{after} after {before}\n{net!r}"
        before = after


@pytest.mark.parametrize(("p", "c"), [(2.0, 1.0), (1.0, 1.2), (3.0, 0.8)])
@pytest.mark.parametrize("model", [he(4, 7), Arms(2, 3).double()], ids=["chain", "tree"])
def test_direction_is_newtons(model: nn.Module, p: float, c: float) -> None:
    """Near the minimum a whole step is ``−H⁻¹ g``, by a dense solve of an independent Hessian."""
    model = copy.deepcopy(model)
    enorm.balance_(model, p=p, c=c, tol=1e-3)
    newton, z = newton_of(model, p, c)
    convex = energy_of(enorm.trace(model), model, p, c)
    start = log_d(z)
    expected = np.linalg.solve(convex.hessian(start), -convex.gradient(start))
    stepped = newton.step(z)
    assert stepped is not None
    np.testing.assert_allclose(log_d(stepped), expected, atol=1e-10 * np.abs(expected).max())


@given(SEEDS, st.integers(1, 6), st.floats(0, 1))
def test_blocks_are_solved_with_their_fill_in(seed: int, count: int, density: float) -> None:
    """Any pattern of coupled groups, against a dense solve."""
    generator = torch.Generator().manual_seed(seed)
    sizes = torch.randint(1, 5, (count,), generator=generator).tolist()
    ends = np.cumsum([0, *sizes])
    blocks = {
        (row, column): 0.2
        * (torch.rand(sizes[row], sizes[column], generator=generator, dtype=torch.float64) - 0.5)
        for row in range(count)
        for column in range(row)
        if torch.rand((), generator=generator) < density
    }
    dense = torch.eye(int(ends[-1]), dtype=torch.float64)
    for (row, column), block in blocks.items():
        rows, columns = slice(*ends[row : row + 2]), slice(*ends[column : column + 2])
        dense[rows, columns], dense[columns, rows] = block, block.T
    right = torch.rand(int(ends[-1]), generator=generator, dtype=torch.float64)
    if torch.linalg.eigvalsh(dense)[0] < 0.05:
        return
    found = solve_blocks(dict(blocks), list(right.split(sizes)))
    assert found is not None
    torch.testing.assert_close(torch.cat(found), torch.linalg.solve(dense, right))


def test_indefinite_blocks_have_no_solution() -> None:
    one = torch.ones(1, dtype=torch.float64)
    assert solve_blocks({(1, 0): 2 * one[:, None]}, [one, one]) is None


@pytest.mark.parametrize("spread", [0.0, 3.0])
def test_few_steps_are_enough(spread: float) -> None:
    """At depth 19: 12 from He initialisation, 20 from a spread of e^(3 N(0, 1)); one minimum."""
    seen: list[enorm.Progress] = []
    model, other = he(19, 40, spread), he(19, 40)
    result = enorm.balance_(model, solver="newton", tol=0.5e-10, callback=seen.append)
    assert result.converged
    assert [one.cycle for one in seen] == list(range(1, result.cycles + 1))
    assert sum(one.newton for one in seen) <= (12 if spread == 0 else 20), seen
    # Cycles come first; what is called a step is one, and the last is.
    assert not seen[0].newton
    assert seen[-1].newton
    # He initialisation is near enough to begin with a single cycle.
    assert spread > 0 or result.cycles <= 12
    reference = enorm.balance_(other, solver="sor", tol=0.5e-10)
    assert reference.cycles <= 100
    for mine, theirs in zip(model.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-7, atol=0)


@pytest.mark.parametrize("p", [1.0, 2.0])
def test_extreme_weights_take_the_same_way(p: float) -> None:
    """Masses that no float64 holds: logarithms serve cycles and Newton alike."""
    model, other = he(3, 6), he(3, 6)
    for one in (model, other):
        with torch.no_grad():
            one[0].get_parameter("weight").mul_(1e-250)
            one[2].get_parameter("weight").mul_(1e250)
    found = enorm.balance_(model, p=p, solver="newton", tol=1e-11)
    expected = enorm.balance_(other, p=p, solver="cyclic", tol=1e-11)
    assert found.converged
    assert found.energy_after == pytest.approx(expected.energy_after, rel=1e-12)


def test_dead_units_stay() -> None:
    """Their scale is one; the others end where cycles take them."""
    hidden = tuple(Hidden(out=5, bias=True) for _ in range(3))
    net = Net(inputs=5, hidden=hidden, outputs=2, seed=3)
    found = []
    solvers: list[Solver] = ["newton", "cyclic"]
    for solver in solvers:
        model = net.build()
        with torch.no_grad():
            layers = [module for module in model if isinstance(module, nn.Linear)]
            layers[0].weight[2] = 0
            layers[2].weight[:, 1] = 0
        before = copy.deepcopy(layers)
        result = enorm.balance_(model, solver=solver, tol=1e-12)
        assert result.converged
        assert torch.equal(layers[0].bias[2], before[0].bias[2])
        assert torch.equal(layers[1].bias[1], before[1].bias[1])
        found.append([parameter.detach().clone() for parameter in model.parameters()])
    for mine, theirs in zip(*found, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-9, atol=0)


def test_biases_keep_their_range() -> None:
    """Where Newton would take a bias out of its dtype, cycles go on with a cap."""
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2, bias=False)).half()
    with torch.no_grad():
        model[0].get_parameter("weight").fill_(1e-3)
        model[2].get_parameter("weight").fill_(60.0)
        model[0].get_parameter("bias").fill_(30000.0)
    result = enorm.balance_(model, solver="newton", max_cycles=20)
    assert bool(model[0].get_parameter("bias").isfinite().all())
    assert result.energy_after <= result.energy_before


def test_what_a_callback_raises_changes_nothing() -> None:
    model = he(3, 6)
    before = copy.deepcopy(model.state_dict())

    def stop(progress: enorm.Progress) -> None:
        if progress.cycle == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        enorm.balance_(model, callback=stop)
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name])


def test_powers_of_two_are_refused() -> None:
    with pytest.raises(ValueError, match="no powers of two"):
        enorm.balance_(he(1, 3), solver="newton", power_of_two=True)
