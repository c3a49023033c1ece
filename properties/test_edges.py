"""Dead units, extreme and non-finite values, wrong arguments: what must not happen does not."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from torch import nn

import enorm
from properties.specs import Hidden, Net, weighted
from properties.strategies import P_NORMS, nets

NET = Net(inputs=3, hidden=(Hidden(out=4), Hidden(out=4)), seed=6)


def snapshot(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


@given(nets(), P_NORMS)
def test_dead_units_are_left_alone(net: Net, p: float) -> None:
    """Zero incoming or outgoing norm: the unit's own rows, bias and columns keep their bits."""
    model = net.build()
    before = copy.deepcopy(model)
    enorm.balance_(model, p=p)
    pairs = list(zip(weighted(before), weighted(model), strict=True))
    for index, spec in enumerate(net.hidden):
        (old, old_norm), (new, new_norm) = pairs[index]
        old_next, new_next = pairs[index + 1][0][0], pairs[index + 1][1][0]
        made, remade = (old, new) if old_norm is None else (old_norm, new_norm)
        block = old_next.weight.shape[1] // spec.out
        for unit in {*spec.dead_in, *spec.dead_out}:
            assert remade is not None
            assert made is not None
            if made.bias is not None:
                assert torch.equal(made.bias[unit], remade.bias[unit]), repr(net)
            # Its columns may move with the rows they stand in, so compare the ratio per row.
            columns = slice(unit * block, (unit + 1) * block)
            dead = new_next.weight[:, columns] != 0
            assert torch.equal(dead, old_next.weight[:, columns] != 0), repr(net)
        for parameter in new.parameters():
            assert parameter.isfinite().all(), repr(net)


def test_width_one_depth_one() -> None:
    """The smallest network there is: two numbers become equal in magnitude."""
    model = Net(inputs=1, hidden=(Hidden(out=1, bias=False),), outputs=1, seed=1).build()
    enorm.balance_(model)
    first, last = (model.get_parameter(name).abs().item() for name in ("0.weight", "2.weight"))
    assert first == pytest.approx(last, rel=1e-15)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_nonfinite_weights(value: float) -> None:
    """``balance_`` refuses and changes nothing; ``step`` leaves such units and counts them."""
    model = NET.build()
    with torch.no_grad():
        model.get_parameter("2.weight")[1, 2] = value
    before = snapshot(model)
    with pytest.raises(ValueError, match=r"'2\.weight'"):
        enorm.balance_(model)
    for name, tensor in model.state_dict().items():
        torch.testing.assert_close(tensor, before[name], rtol=0, atol=0, equal_nan=True)
    stepper = enorm.ENorm(model)
    stepper.step()
    # Unit 1 of layer 2 by its row, unit 2 of layer 1 by its column.
    assert stepper.nonfinite == 2
    after = model.state_dict()
    assert torch.equal(after["0.weight"][2], before["0.weight"][2])
    assert torch.equal(after["0.bias"][2], before["0.bias"][2])
    assert not torch.equal(after["0.weight"][0], before["0.weight"][0])
    finite = before["2.weight"].isfinite()
    assert after["2.weight"][finite].isfinite().all()


def test_a_bias_cannot_be_scaled_out_of_range() -> None:
    """D would be about 1e6 and take the bias past the largest float16; it stops below."""
    model = NET.build().half()
    with torch.no_grad():
        model.get_parameter("0.weight").mul_(1e-4)
        model.get_parameter("0.bias").fill_(500)
        model.get_parameter("2.weight").mul_(1e4)
    result = enorm.balance_(model)
    assert model.get_parameter("0.bias").isfinite().all()
    assert model.get_parameter("0.bias").max() > 10_000
    assert result.energy_after < result.energy_before


BAD_ARGUMENTS: dict[str, Callable[[nn.Module], object]] = {
    "p must": lambda model: enorm.balance_(model, p=0),
    "p must ": lambda model: enorm.ENorm(model, p=math.nan),
    "p must  ": lambda model: enorm.energy(model, p=math.inf),
    "c must": lambda model: enorm.balance_(model, c=-1.0),
    "c must ": lambda model: enorm.ENorm(model, c=0.0),
    "solver must": lambda model: enorm.balance_(model, solver="newtown"),  # type: ignore[arg-type]
    "tol must": lambda model: enorm.balance_(model, tol=math.nan),
    "max_cycles must": lambda model: enorm.balance_(model, max_cycles=0),
    "max_cycles must ": lambda model: enorm.balance_(model, max_cycles=1.5),  # type: ignore[arg-type]
    "cycles must": lambda model: enorm.ENorm(model, cycles=0),
    "every must": lambda model: enorm.ENorm(model, every=0),
    "order must": lambda model: enorm.ENorm(model, order="random"),  # type: ignore[arg-type]
    "batchnorm must": lambda model: enorm.balance_(model, batchnorm="exact"),  # type: ignore[arg-type]
    "batchnorm must ": lambda model: enorm.residual(model, batchnorm=""),  # type: ignore[arg-type]
    "exclude names 'head'": lambda model: enorm.trace(model, exclude=["head"]),
    "attach needs": lambda model: enorm.ENorm(model).attach(),
    "another model": lambda model: enorm.balance_(model, enorm.trace(nn.Sequential(nn.ReLU()))),
    "another model ": lambda model: enorm.ENorm(model, plan=enorm.trace(nn.Linear(2, 2))),
    "no state of an ENorm": lambda model: enorm.ENorm(model).load_state_dict({}),
    "no groups": lambda _: enorm.balance_(nn.Sequential(nn.Linear(2, 2))),
    "no groups ": lambda _: enorm.ENorm(nn.Sequential(nn.Linear(2, 2), nn.GELU(), nn.Linear(2, 2))),
}


@pytest.mark.parametrize("message", BAD_ARGUMENTS)
def test_bad_arguments_are_named_and_change_nothing(message: str) -> None:
    """One sentence that names the parameter."""
    model = NET.build()
    before = snapshot(model)
    with pytest.raises(ValueError, match=message.strip()) as caught:
        BAD_ARGUMENTS[message](model)
    assert "\n" not in str(caught.value)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_undo_restores_every_bit() -> None:
    """Parameters and momentum alike, after the model has been used again."""
    model = NET.build()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    model(NET.draw_inputs()).sum().backward()
    optimizer.step()
    before = snapshot(model)
    state = [optimizer.state[p]["momentum_buffer"].clone() for p in model.parameters()]
    result = enorm.balance_(model, c=2.0, optimizer=optimizer)
    assert not torch.equal(before["0.weight"], model.state_dict()["0.weight"])
    result.undo_()
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    for parameter, buffer in zip(model.parameters(), state, strict=True):
        assert torch.equal(optimizer.state[parameter]["momentum_buffer"], buffer)


def test_parameters_keep_identity_mode_and_gradient() -> None:
    """In place, without a graph, whatever mode each module is in."""
    model = NET.build()
    model[1].train()
    identities = [id(parameter) for parameter in model.parameters()]
    modes = [module.training for module in model.modules()]
    enorm.balance_(model)
    enorm.ENorm(model).step()
    enorm.verify(model, model, NET.draw_inputs())
    assert identities == [id(parameter) for parameter in model.parameters()]
    assert modes == [module.training for module in model.modules()]
    assert all(parameter.requires_grad and parameter.is_leaf for parameter in model.parameters())
    assert all(parameter.grad is None for parameter in model.parameters())


def test_state_dict_continues() -> None:
    """A stepper restored from a checkpoint goes on counting where the other stopped."""
    model = NET.build()
    one = enorm.ENorm(model, every=3)
    for _ in range(2):
        one.step()
    before = snapshot(model)
    other = enorm.ENorm(model, every=3)
    other.load_state_dict(one.state_dict())
    other.step()
    assert not torch.equal(before["0.weight"], model.state_dict()["0.weight"])
    stranger = enorm.ENorm(Net(inputs=3, hidden=(Hidden(out=4),)).build())
    with pytest.raises(ValueError, match="scales other parameters"):
        stranger.load_state_dict(one.state_dict())


def test_a_replaced_parameter_is_an_error() -> None:
    """Stepping on would scale one side of a group only, or tensors that nobody reads."""

    def replaced_layer(model: nn.Sequential) -> None:
        model[-1] = nn.Linear(NET.hidden[-1].out, 7).double()

    def parametrized(model: nn.Sequential) -> None:
        nn.utils.parametrizations.weight_norm(model[-1])

    def assigned(model: nn.Sequential) -> None:
        twin = {name: value.clone() for name, value in model.state_dict().items()}
        model.load_state_dict(twin, assign=True)

    for change in (replaced_layer, parametrized, assigned):
        model = NET.build()
        stepper = enorm.ENorm(model)
        change(model)
        before = snapshot(model)
        with pytest.raises(RuntimeError, match="was replaced after this ENorm was built"):
            stepper.step()
        assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_what_leaves_the_range_of_the_dtype_is_refused() -> None:
    """60000 times 5.6 is no float16 number; the model stays as it was."""
    model = nn.Sequential(nn.Linear(1, 1, bias=False), nn.ReLU(), nn.Linear(1, 1000, bias=False))
    model.half()
    for parameter in model.parameters():
        nn.init.constant_(parameter, 60000)
    with pytest.raises(ValueError, match=r"'0.weight' would leave the range of float16"):
        enorm.balance_(model)
    assert all((parameter == 60000).all() for parameter in model.parameters())


@pytest.mark.parametrize("powers", [(20, 34, 38), (-20, -34, -38)])
def test_no_weight_passes_through_infinity_or_zero(powers: tuple[int, ...]) -> None:
    """A row's scale alone would take the middle weight out of float32's range and back."""
    model = nn.Sequential(*(nn.Linear(1, 1, bias=False) for _ in powers))
    for parameter, power in zip(model.parameters(), powers, strict=True):
        nn.init.constant_(parameter, 10.0**power)
    assert enorm.balance_(model).converged
    mean = math.prod(10.0 ** (power / 3) for power in powers)
    for parameter in model.parameters():
        assert parameter.item() == pytest.approx(mean, rel=1e-6)


def test_energy_of_small_exponents() -> None:
    """``‖W‖_p`` itself is out of float64's range for p = 0.01; its p-th power is a plain sum."""
    model = nn.Sequential(nn.Linear(64, 64, bias=False), nn.ReLU(), nn.Linear(64, 64, bias=False))
    for parameter in model.parameters():
        nn.init.constant_(parameter, 2.0)
    assert enorm.energy(model, p=0.01) == pytest.approx(2 * 64**2 * 2**0.01, rel=1e-12)
    result = enorm.balance_(model, p=0.01)
    assert result.energy_after == pytest.approx(result.energy_before, rel=1e-12)


def test_a_cap_keeps_powers_of_two() -> None:
    """The bias would overflow, so its unit moves less far, but by a power of two."""
    model = nn.Sequential(nn.Linear(1, 1), nn.ReLU(), nn.Linear(1, 1, bias=False))
    nn.init.constant_(model.get_parameter("0.weight"), 1.0)
    nn.init.constant_(model.get_parameter("0.bias"), torch.finfo(torch.float32).max / 7)
    nn.init.constant_(model.get_parameter("2.weight"), 1e6)
    enorm.balance_(model, power_of_two=True)
    moved = math.log2(model.get_parameter("0.weight").item())
    assert moved == 1


def test_optimizers_that_are_none() -> None:
    model = NET.build()
    with pytest.raises(TypeError, match=r"got Plan; a plan is given as plan="):
        enorm.ENorm(model, enorm.trace(model))  # type: ignore[arg-type]
