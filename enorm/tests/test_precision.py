"""Float32 sums, float64 sums, logarithms: a step finds out which of them holds its masses."""

from __future__ import annotations

import copy
import itertools
import math
from typing import Any

import pytest
import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile

import enorm
from enorm._compiled import _held
from enorm._cycle import holds
from enorm._masses import lost_range
from enorm._sharded import all_finite
from enorm._stepper import precisions
from enorm.reference import ChainLayer
from enorm.tests.compiler import needs_compiler
from properties import oracle, tolerances
from properties.oracle import chain
from properties.specs import Hidden, Net


def test_extreme_scales_equal_the_reference() -> None:
    """Sums of 1e±60 are out of float32's range, products of scales nearly out of float64's."""
    net = Net(
        inputs=4,
        hidden=tuple(Hidden(out=5, bias=False, dead_in=(1,), dead_out=(3,)) for _ in range(3)),
        decades=30,
        dtype="float32",
        seed=2,
    )
    for p in (0.5, 2.0, 7.0):
        model = net.build()
        expected, _ = enorm.reference.cycle(chain(model), p=p, c=1.2)
        stepper = enorm.ENorm(model, p=p, c=1.2)
        stepper.step()
        assert stepper.nonfinite == 0
        rtol = tolerances.stored_weight(net.torch_dtype, oracle.fan_in(model))
        oracle.assert_same(net, f"p = {p}", chain(model), expected, rtol)


def test_a_scale_that_vanishes_beside_another_is_not_lost() -> None:
    """One row reads two units whose scales differ by 1e23 and whose shares of its norm are equal.

    No sum leaves float32's range here; the smaller of the two factors does.
    """
    model = nn.Sequential(
        *(nn.Linear(1, 2, bias=False), nn.ReLU(), nn.Linear(2, 1, bias=False)),
        *(nn.ReLU(), nn.Linear(1, 1, bias=False)),
    )
    with torch.no_grad():
        model.get_parameter("0.weight").copy_(torch.tensor([[3e-9], [1e10]]))
        model.get_parameter("2.weight").copy_(torch.tensor([[3e13, 4e-14]]))
    expected, _ = enorm.reference.cycle(chain(model))
    enorm.ENorm(model).step()
    for layer, known in zip(chain(model), expected, strict=True):
        torch.testing.assert_close(layer.weight.double(), known.weight, rtol=1e-6, atol=0)


def test_two_batchnorms_of_one_width_do_not_share_memory() -> None:
    """The range check of the first one's squares must not look at those of the second."""
    model = nn.Sequential(
        *(nn.Conv1d(2, 3, 1), nn.BatchNorm1d(3), nn.ReLU()),
        *(nn.Conv1d(3, 3, 1), nn.BatchNorm1d(3), nn.ReLU()),
        nn.Conv1d(3, 2, 1),
    )
    with torch.no_grad():
        model.get_parameter("1.weight")[0] = 1e-25
    expected, _ = enorm.reference.cycle(chain(model))
    enorm.ENorm(model).step()
    for layer, known in zip(chain(model), expected, strict=True):
        torch.testing.assert_close(layer.weight.double(), known.weight, rtol=1e-5, atol=1e-6)
    gamma = model.get_parameter("1.weight")[0].item()
    assert expected[0].gamma is not None
    assert abs(gamma / expected[0].gamma[0].item() - 1) < 1e-5


def test_what_is_tried_in_which_order() -> None:
    """On a CPU from cheap to safe; elsewhere, unchecked, what is safe for every finite weight."""
    assert precisions(2, 7.0, checked=True) == ["float32", "float64", "log"]
    assert precisions(8, 7.0, checked=True) == ["float64", "log"]
    assert precisions(8, 2.0, checked=True) == ["float64", "log"]
    assert precisions(2, 2.0, checked=False) == ["float64"]
    assert precisions(4, 2.0, checked=False) == ["float64"]
    assert precisions(4, 2.5, checked=False) == ["log"]
    assert precisions(8, 2.0, checked=False) == ["log"]


def test_the_cheapest_is_enough_for_ordinary_weights() -> None:
    """Nothing is remembered of a step that stayed within float32's range."""
    net = Net(inputs=4, hidden=(Hidden(out=5), Hidden(out=5)), dtype="float32")
    stepper = enorm.ENorm(net.build())
    stepper.step()
    assert stepper.state_dict()["precision"] is None


@pytest.mark.parametrize("settings", [{}, {"order": "jacobi"}])
def test_steps_use_their_memory_again(settings: dict[str, Any]) -> None:
    """Masses of weights of one shape take turns in one place, in later steps as well."""
    net = Net(inputs=50, hidden=tuple(Hidden(out=50) for _ in range(5)), dtype="float32")
    stepper = enorm.ENorm(net.build(), **settings)
    largest = []
    for _ in range(3):
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as found:
            stepper.step()
        largest.append(max(event.self_cpu_memory_usage for event in found.events()))
    assert largest[0] >= 50 * 50 * 4
    assert largest[1] == largest[2] < 50 * 50 * 4


def test_parameters_may_move_to_other_memory() -> None:
    """``parameter.data = …`` keeps the parameter and changes where it is and how it lies."""
    net = Net(inputs=5, hidden=(Hidden(out=6), Hidden(out=7)), dtype="float32")
    model, twin = net.build(), net.build()
    steppers = [enorm.ENorm(one) for one in (model, twin)]
    for stepper in steppers:
        stepper.step()
    for one in model.parameters():
        one.data = (one.data + 1).mT.contiguous().mT if one.dim() == 2 else one.data + 1
    with torch.no_grad():
        for one in twin.parameters():
            one.add_(1)
    for stepper in steppers:
        stepper.step()
    for one, other in zip(model.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize(
    ("low", "high", "p", "expected"),
    [
        # Masses of 2^-50 to 2^52 are trusted, and scales of up to 2^24: a ratio of 2^48p.
        (1.0, 1.0, 2.0, True),
        (2.0**-50, 2.0**45, 2.0, True),
        (2.0**-50, 2.0**47, 2.0, False),
        (2.0**-20, 2.0**27, 1.0, True),
        (2.0**-20, 2.0**29, 1.0, False),
        (2.0**-50, 2.0**52, 9.0, True),
        (2.0**-52, 1.0, 9.0, False),
        (1.0, 2.0**54, 9.0, False),
        (0.0, 1.0, 2.0, False),
        (1.0, math.inf, 2.0, False),
        (math.nan, math.nan, 2.0, False),
    ],
)
def test_what_plain_arithmetic_holds(low: float, high: float, p: float, expected: bool) -> None:
    """The same said by numbers and, where a compiler writes it down, by tensors."""
    assert holds(torch.float32, low, high, p) is expected
    assert bool(_held(torch.tensor([low]), torch.tensor([high]), p)) is expected


def test_scales_near_the_end_of_float64() -> None:
    """1e-300 and 1e300: d is 1e300, whose square no float64 holds."""
    model = nn.Sequential(nn.Linear(1, 1, bias=False), nn.ReLU(), nn.Linear(1, 1, bias=False))
    model.double()
    nn.init.constant_(model.get_parameter("0.weight"), 1e-300)
    nn.init.constant_(model.get_parameter("2.weight"), 1e300)
    result = enorm.balance_(model)
    assert result.converged
    for name in ("0.weight", "2.weight"):
        assert abs(model.get_parameter(name).item() - 1) < 1e-12


def test_factors_far_apart_meet_before_an_entry_does() -> None:
    """In float64 a weight times one of its two factors would be below the normal numbers."""
    torch.manual_seed(0)
    widths = [3, 4, 4, 2]
    layers = [nn.Linear(*pair, bias=False) for pair in itertools.pairwise(widths)]
    model = nn.Sequential(layers[0], nn.ReLU(), layers[1], nn.ReLU(), layers[2]).double()
    first, middle, last = (layer.weight for layer in layers)
    with torch.no_grad():
        first.mul_(2.0**1000)
        middle.mul_(2.0**-60)
        last.mul_(2.0**-1000)
    inputs = torch.randn(5, 3, dtype=torch.float64)
    before = model(inputs)
    assert enorm.balance_(model).converged
    torch.testing.assert_close(model(inputs), before, rtol=1e-12, atol=0)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_one_entry_is_enough_not_to_be_finite(dtype: torch.dtype) -> None:
    entries = torch.ones(1000, dtype=dtype)
    assert all_finite(entries)
    for bad in (math.nan, math.inf, -math.inf):
        assert not all_finite(entries.index_fill(0, torch.tensor(500), bad))
    # A process may hold no row of a sharded weight.
    assert all_finite(entries[:0])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_sum_near_the_ends_of_its_range_is_lost(dtype: torch.dtype) -> None:
    """The margin is 2^12 last places on both sides; zeros count where they may be small."""
    info = torch.finfo(dtype)
    margin = 2.0**12 / info.eps
    inside = [info.smallest_normal * margin * 1.01, 1.0, info.max / margin / 1.01]

    def lost(*sums: float, zeros_are_dead: bool = True) -> bool:
        seen = [torch.tensor([one], dtype=dtype) for one in sums]
        return bool(lost_range(seen, zeros_are_dead=zeros_are_dead))

    assert not lost(*inside)
    assert not lost(0.0, *inside)
    assert lost(0.0, *inside, zeros_are_dead=False)
    assert lost(1.0, info.smallest_normal * margin / 1.01)
    assert lost(1.0, info.max / margin * 1.01)
    assert lost(1.0, float("nan"))


def test_scales_stop_where_a_bias_would_overflow() -> None:
    """D = sqrt(R / L) = 100 for all units, but for one's bias at 1e37 and one's at 3e38."""
    model = nn.Sequential(nn.Linear(1, 3), nn.ReLU(), nn.Linear(3, 1))
    biases = [1e37, 3e38, 1.0]
    with torch.no_grad():
        model.get_parameter("0.weight").fill_(1)
        model.get_parameter("0.bias").copy_(torch.tensor(biases))
        model.get_parameter("2.weight").fill_(1e4)
    largest = torch.finfo(torch.float32).max / 2 / 1e37
    expected = torch.tensor([largest, 1.0, 100.0])
    stepped, balanced = copy.deepcopy(model), copy.deepcopy(model)
    stepper = enorm.ENorm(stepped)
    for _ in range(2):
        stepper.step()
    result = enorm.balance_(balanced, solver="cyclic")
    assert result.converged
    assert enorm.balance_(model, power_of_two=True).converged
    for one, scales in ((stepped, expected), (balanced, expected)):
        torch.testing.assert_close(one.get_parameter("0.weight")[:, 0], scales)
        torch.testing.assert_close(one.get_parameter("2.weight")[0], 1e4 / scales)
    assert model.get_parameter("0.weight")[:, 0].tolist() == [16.0, 1.0, 128.0]


def test_a_relaxed_step_does_not_pass_a_biass_limit() -> None:
    """With ω = 1.07 the first step alone would."""
    model = nn.Sequential(
        *(nn.Linear(1, 1), nn.ReLU(), nn.Linear(1, 1), nn.ReLU(), nn.Linear(1, 1))
    )
    with torch.no_grad():
        for name, value in (("0.weight", 1), ("0.bias", 1e37), ("2.weight", 1e4), ("4.weight", 1)):
            model.get_parameter(name).fill_(value)
    enorm.balance_(model, solver="sor", max_cycles=1)
    assert model.get_parameter("0.bias").item() <= torch.finfo(torch.float32).max / 2


def test_powers_of_two_stay_where_two_are_equally_good() -> None:
    """D = sqrt(R / L) = sqrt(2): neither 1 nor 2 is nearer, and to go and come never ends."""
    model = nn.Sequential(nn.Linear(1, 1), nn.ReLU(), nn.Linear(1, 1))
    with torch.no_grad():
        model.get_parameter("0.weight").fill_(1)
        model.get_parameter("2.weight").fill_(2)
    assert enorm.balance_(model, power_of_two=True).converged
    assert model.get_parameter("0.weight").item() == 1


def test_an_infinite_norm_is_counted() -> None:
    model = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 1))
    with torch.no_grad():
        model.get_parameter("0.weight")[1, 0] = torch.inf
    stepper = enorm.ENorm(model)
    stepper.step()
    assert stepper.nonfinite.dtype is torch.int64
    assert int(stepper.nonfinite) == 1


@pytest.mark.parametrize("compile", [False, pytest.param(True, marks=needs_compiler)])
def test_a_step_inside_autocast_is_the_same(compile: bool) -> None:
    """Products of a grouped convolution are among those that autocast takes to bfloat16."""
    torch.manual_seed(0)
    first = [nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3, groups=2), nn.ReLU()]
    model = nn.Sequential(*first, nn.Flatten(), nn.Linear(8 * 16, 3))
    twin = copy.deepcopy(model)
    enorm.ENorm(model, c=1.2, compile=compile).step()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        enorm.ENorm(twin, c=1.2, compile=compile).step()
    assert all(map(torch.equal, model.parameters(), twin.parameters()))


@pytest.mark.parametrize("compile", [False, pytest.param(True, marks=needs_compiler)])
@pytest.mark.parametrize("threads", [1, 2, 3])
def test_wide_weights_are_summed_in_as_many_parts_as_there_are_threads(
    threads: int, compile: bool
) -> None:
    """192 rows are as many for each of two or three, and enough that each sums its own."""
    torch.manual_seed(0)
    layers = [nn.Linear(40, 192), nn.Linear(192, 192), nn.Linear(192, 40)]
    model = nn.Sequential(layers[0], nn.ReLU(), layers[1], nn.ReLU(), layers[2])
    before = [ChainLayer(one.weight, one.bias) for one in layers]
    expected, _ = enorm.reference.cycle(before, c=1.2)
    usual = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        enorm.ENorm(model, c=1.2, compile=compile).step()
    finally:
        torch.set_num_threads(usual)
    # Two scales, each from two sums of up to 192 squares under a square root, and their products.
    allowed = (192 + 6) * torch.finfo(torch.float32).eps
    for layer, other in zip(layers, expected, strict=True):
        torch.testing.assert_close(layer.weight.double(), other.weight, rtol=allowed, atol=0)
