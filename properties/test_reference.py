"""Each cycle equals Algorithm 1 in plain loops, in order and value."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

import enorm
from enorm.reference import ChainLayer
from properties import tolerances
from properties.specs import Hidden, Net, weighted
from properties.strategies import C_FACTORS, P_NORMS, nets


def chain(model: nn.Sequential) -> list[ChainLayer]:
    """The model's layers as the reference takes them; the last one's BatchNorm does not exist."""
    return [
        ChainLayer(
            weight=layer.weight.detach().double(),
            bias=None if layer.bias is None else layer.bias.detach().double(),
            gamma=None if norm is None else norm.weight.detach().double(),
            beta=None if norm is None else norm.bias.detach().double(),
        )
        for layer, norm in weighted(model)
    ]


def fan_in(model: nn.Module) -> int:
    """Sum over all groups of the number of terms in their norms, at most all weights twice."""
    return sum(2 * parameter[0].numel() for parameter in model.parameters() if parameter.dim() > 1)


def assert_equal(
    net: Net, ours: list[ChainLayer], reference: list[ChainLayer], rtol: float
) -> None:
    tiny = torch.finfo(net.torch_dtype).smallest_normal
    for k, (mine, theirs) in enumerate(zip(ours, reference, strict=True), start=1):
        for name in ("weight", "bias", "gamma", "beta"):
            one: Tensor | None = getattr(mine, name)
            other: Tensor | None = getattr(theirs, name)
            if one is None or other is None:
                assert one is other
                continue
            excess = ((one - other).abs() - rtol * other.abs() - tiny).max().item()
            assert excess <= 0, (
                f"layer {k} {name}: beyond rtol {rtol} and {tiny} by {excess}\n{net!r}"
            )


@given(nets(), P_NORMS, C_FACTORS, st.sampled_from(["cyclic", "jacobi"]), st.integers(1, 3))
def test_step_equals_algorithm_1(net: Net, p: float, c: float, order: str, cycles: int) -> None:
    """Several cycles in one step work on masses only, and give the same weights."""
    model = net.build()
    expected = chain(model)
    for _ in range(cycles):
        expected, _ = enorm.reference.cycle(expected, p=p, c=c, order=order)  # type: ignore[arg-type]
    enorm.ENorm(model, p=p, c=c, order=order, cycles=cycles).step()  # type: ignore[arg-type]
    rtol = cycles * tolerances.stored_weight(net.torch_dtype, fan_in(model))
    assert_equal(net, chain(model), expected, rtol)


@given(nets(batchnorm=False), C_FACTORS)
def test_energy_equals_the_reference(net: Net, c: float) -> None:
    """Depth factors included."""
    model = net.build()
    expected = enorm.reference.energy(chain(model), p=2.0, c=c)
    assert abs(enorm.energy(model, 2.0, c) - expected) <= 1e-12 * expected


def test_reference_by_hand() -> None:
    """Two weights 2 and 8: d = sqrt(8 / 2) = 2 makes both 4."""
    layers = [
        ChainLayer(torch.tensor([[2.0]]), torch.tensor([3.0])),
        ChainLayer(torch.tensor([[8.0]])),
    ]
    after, scales = enorm.reference.cycle(layers)
    assert scales == [[2.0]]
    assert after[0].weight.item() == 4
    assert after[0].bias is not None
    assert after[0].bias.item() == 6
    assert after[1].weight.item() == 4
    assert layers[0].weight.item() == 2


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
        rtol = tolerances.stored_weight(net.torch_dtype, fan_in(model))
        assert_equal(net, chain(model), expected, rtol)


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
