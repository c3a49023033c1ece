"""A compiled step does what the plain one does, and what logarithms do where nothing is checked."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import enorm
from enorm._apply import parameters, targets_of, write_
from enorm._compiled import CompiledCycles, rows_at_once
from enorm._plan import tensors_of
from enorm._solve import Scales, build_problem
from enorm.tests.compiler import needs_compiler

pytestmark = needs_compiler


class Residual(nn.Module):
    """A coupled weight, a grouped and a transposed convolution, a concatenation and norms."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.a = nn.Conv2d(8, 8, 3, padding=1, groups=4)
        self.b = nn.Conv2d(8, 8, 3, padding=1)
        self.side = nn.ConvTranspose2d(3, 4, 3, padding=1)
        self.mix = nn.Conv2d(12, 6, 1)
        self.norm = nn.BatchNorm2d(6)
        self.last = nn.Linear(6 * 16, 5)

    def forward(self, x: Tensor) -> Tensor:
        """Four by four positions."""
        h = torch.relu(self.stem(x))
        h = torch.relu(h + self.b(h) + self.a(h))
        h = torch.relu(self.mix(torch.cat([h, torch.relu(self.side(x))], 1)))
        result: Tensor = self.last(torch.relu(self.norm(h)).flatten(1))
        return result


class Transposed(nn.Module):
    """A transposed convolution that reads the units it makes, as it lies in memory."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 1)
        self.up = nn.ConvTranspose2d(8, 8, 3, padding=1)
        self.last = nn.Conv2d(8, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        """As many positions as it gets."""
        h = torch.relu(self.stem(x))
        result: Tensor = self.last(torch.relu(h + self.up(h)))
        return result


def mlp() -> nn.Module:
    """Biases, rows that are summed in several parts and rows that are not."""
    first = [nn.Linear(3 * 16, 34), nn.ReLU(), nn.Linear(34, 48), nn.ReLU()]
    return nn.Sequential(nn.Flatten(), *first, nn.Linear(48, 5))


def trained(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    generator = torch.Generator().manual_seed(1)
    dtype = next(model.parameters()).dtype
    x = torch.randn(6, 3, 4, 4, generator=generator).to(dtype)
    optimizer.zero_grad()
    model(x).square().mean().backward()
    optimizer.step()


@pytest.mark.parametrize(
    ("make", "dtype", "settings"),
    [
        (mlp, torch.float32, {"c": 1.2, "cycles": 2}),
        (mlp, torch.float64, {"p": 1.0, "order": "jacobi", "cycles": 2}),
        (Residual, torch.float32, {"c": 1.1}),
        (Residual, torch.float64, {"p": 3.0}),
        (Transposed, torch.float32, {}),
        (Residual, torch.bfloat16, {"batchnorm": "ignore"}),
    ],
)
def test_as_without_the_compiler(
    make: Callable[[], nn.Module], dtype: torch.dtype, settings: dict[str, object]
) -> None:
    """Weights, biases, momentum and an averaged copy, over two steps of training."""
    torch.manual_seed(0)
    model = make().to(dtype)
    twins = []
    for compile in (False, True):
        twin = copy.deepcopy(model)
        average = copy.deepcopy(model)
        optimizer = torch.optim.SGD(twin.parameters(), lr=1e-3, momentum=0.9)
        stepper = enorm.ENorm(twin, optimizer, copies=[average], compile=compile, **settings)  # type: ignore[arg-type]
        for _ in range(2):
            trained(twin, optimizer)
            stepper.step()
        buffers = [optimizer.state[one]["momentum_buffer"] for one in twin.parameters()]
        twins.append([*twin.parameters(), *average.parameters(), *buffers])
    # Sums over at most 192 products in another order, and four products with the scales.
    u = torch.finfo(dtype).eps
    for one, other in zip(*twins, strict=True):
        allowed = (200 if dtype != torch.bfloat16 else 4) * u * one.abs().max()
        assert (one - other).abs().max() <= allowed


def compiled_cycles(model: nn.Module, counter: Tensor, c: float, cycles: int) -> CompiledCycles:
    plan = enorm.trace(model)
    return CompiledCycles(
        build_problem(plan, 2.0, c),
        targets_of(plan),
        tensors_of(model, plan),
        torch.float64,
        cycles=cycles,
        order="cyclic",
        counter=counter,
    )


@pytest.mark.parametrize("cycles", [1, 2])
@pytest.mark.parametrize("make", [mlp, Residual])
def test_unchecked_as_logarithms(make: Callable[[], nn.Module], cycles: int) -> None:
    """What a GPU runs: dead units, infinite ones and biases at the end of float32."""
    torch.manual_seed(0)
    model = make()
    weights = [one for one in model.parameters() if one.dim() > 1]
    bias = next(one for name, one in model.named_parameters() if name.endswith("bias"))
    with torch.no_grad():
        weights[0][1] = 0
        weights[0][2] = math.inf
        weights[0][3] *= 1e-18
        bias[3] = 1e38
    twin = copy.deepcopy(model)
    counter = torch.zeros((), dtype=torch.int64)
    with torch.no_grad():
        found = compiled_cycles(model, counter, 1.2, cycles)()
        plan = enorm.trace(twin)
        tensors = tensors_of(twin, plan)
        scales = Scales(build_problem(plan, 2.0, 1.2), tensors, precision="float64")
        bad = [scales.cycle()[1] for _ in range(cycles)]
        write_(parameters(targets_of(plan), tensors), scales.scales())
    assert int(counter) == int(torch.stack(bad).sum()) > 0
    for one, other in zip(found, scales.scales(), strict=True):
        # In units of log2: a relative error of a few hundred roundings of a sum.
        assert (one - other).abs().max() <= 2**-42
    for ours, theirs in zip(model.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=2**-22, atol=0, equal_nan=True)
    if make is mlp:
        assert found[0][1] == found[0][2] == 0
        # What float32 has left above 1e38, with a factor 2 to spare.
        assert found[0][3] == pytest.approx(math.log2(torch.finfo(torch.float32).max / 2e38))


@pytest.mark.parametrize("rows", [1, 5, 10, 34, 500, 509, 4096])
def test_each_thread_sums_whole_parts(rows: int) -> None:
    at_once = rows_at_once(rows)
    assert rows % at_once == 0
    assert rows // at_once % math.gcd(rows, torch.get_num_threads()) == 0


def test_too_far_apart_to_be_compiled() -> None:
    with pytest.raises(ValueError, match="within 2\\^40 of each other"):
        enorm.ENorm(mlp(), c=2.0**30, compile=True)


def test_dead_units_leave_the_compiled_path() -> None:
    """Checked arithmetic has no answer for them; what has one takes over."""
    models = [mlp() for _ in range(2)]
    models[1].load_state_dict(models[0].state_dict())
    for model, compile in zip(models, (True, False), strict=True):
        with torch.no_grad():
            model.get_parameter("1.weight")[0] = 0
        stepper = enorm.ENorm(model, c=1.2, compile=compile)
        stepper.step()
    for one, other in zip(*(model.parameters() for model in models), strict=True):
        assert (one - other).abs().max() <= 4 * torch.finfo(one.dtype).eps * one.abs().max()


def test_scales_too_wide_for_one_factor_after_the_other() -> None:
    """A factor of 2^60 is applied in float64, compiled or not."""
    models = [mlp() for _ in range(2)]
    models[1].load_state_dict(models[0].state_dict())
    for model, compile in zip(models, (True, False), strict=True):
        with torch.no_grad():
            model.get_parameter("1.weight").mul_(2.0**-20)
            model.get_parameter("3.weight").mul_(2.0**40)
        enorm.ENorm(model, compile=compile).step()
    for one, other in zip(*(model.parameters() for model in models), strict=True):
        assert (one - other).abs().max() <= 200 * torch.finfo(one.dtype).eps * one.abs().max()


def test_scales_that_no_factor_can_hold() -> None:
    """Of weights of 1e±150 second moments go with d^−2, which is 1e±600 on either side."""
    models = []
    for compile in (False, True):
        torch.manual_seed(0)
        model = mlp().double()
        with torch.no_grad():
            model.get_parameter("1.weight").mul_(1e-150)
            model.get_parameter("3.weight").mul_(1e150)
            model.get_parameter("5.weight").mul_(1e-150)
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.0)
        trained(model, optimizer)
        enorm.ENorm(model, optimizer, compile=compile).step()
        moments = [optimizer.state[one]["exp_avg_sq"] for one in model.parameters()]
        models.append([*model.parameters(), *moments])
    for one, other in zip(*models, strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("compile", [False, True])
def test_what_is_stored_in_few_bits_is_rounded_once(compile: bool) -> None:
    """Rows and columns of one weight are scaled, in a dtype that holds both factors."""
    torch.manual_seed(0)
    model = mlp().to(torch.bfloat16)
    average, wide = copy.deepcopy(model), copy.deepcopy(model).double()
    enorm.ENorm(model, c=1.5, copies=[average], compile=compile).step()
    enorm.ENorm(wide, c=1.5).step()
    # Half a unit in the last place, and what float32 sums do to the scales.
    allowed = torch.finfo(torch.bfloat16).eps / 2 + 1e-5
    for narrow in (model, average):
        for one, other in zip(narrow.parameters(), wide.parameters(), strict=True):
            assert ((one.double() - other).abs() <= allowed * other.abs()).all()


def test_what_cannot_be_compiled_is_said() -> None:
    with pytest.raises(ValueError, match="compile=True needs a finite p"):
        enorm.ENorm(mlp(), p=math.inf, compile=True)
    with pytest.raises(
        ValueError,
        match=r"needs factors c_k of one group within 2\^40 of each other after they are raised to "
        r"p: use a c nearer to 1, or compile=False$",
    ):
        enorm.ENorm(mlp(), c=2.0**21, compile=True)


def test_as_many_as_you_like() -> None:
    """The compiler's limit on versions of one function does not count those of other models."""
    for width in range(3, 15):
        model = nn.Sequential(nn.Linear(2, width), nn.ReLU(), nn.Linear(width, 2))
        before = enorm.residual(model)
        enorm.ENorm(model, compile=True).step()
        assert enorm.residual(model) < 1e-3 * before


@pytest.mark.parametrize(("compile", "cycles"), [(False, 1), (True, 1), (True, 2)])
def test_what_is_in_front_of_a_dead_unit_is_done_fast(compile: bool, cycles: int) -> None:
    """The second of three groups is where the fast way ends; nothing is done twice."""
    torch.manual_seed(0)
    layers = [nn.Linear(6, 9), nn.ReLU(), nn.Linear(9, 8), nn.ReLU(), nn.Linear(8, 7), nn.ReLU()]
    model = nn.Sequential(*layers, nn.Linear(7, 4))
    with torch.no_grad():
        model.get_parameter("2.weight")[3] = 0
    twin = copy.deepcopy(model).double()
    plan = enorm.trace(twin)
    tensors = tensors_of(twin, plan)
    scales = Scales(build_problem(plan, 2.0, 1.2), tensors, precision="log")
    with torch.no_grad():
        for _ in range(cycles):
            scales.cycle()
        write_(parameters(targets_of(plan), tensors), scales.scales())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0, momentum=0.9)
    for parameter in model.parameters():
        optimizer.state[parameter]["momentum_buffer"] = torch.ones_like(parameter)
    stepper = enorm.ENorm(model, optimizer, c=1.2, cycles=cycles, compile=compile)
    stepper.step()
    assert stepper.log2_scales[1][3] == 0
    # Sums of at most nine squares and four roundings of a scale, relative; two of a weight.
    u = torch.finfo(torch.float32).eps
    for found, expected in zip(stepper.log2_scales, scales.scales(), strict=True):
        assert (found - expected).abs().max() <= 32 * cycles * u
    for one, other in zip(model.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(one.double(), other, rtol=64 * cycles * u, atol=0.0)
    d = scales.scales()[0].exp2()[:, None]
    momentum = optimizer.state[model.get_parameter("0.weight")]["momentum_buffer"]
    torch.testing.assert_close(
        (momentum * d).double(), torch.ones(9, 6).double(), rtol=1e-5, atol=0
    )
