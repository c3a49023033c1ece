"""Errors, state, undo: what the functions of this implementation do besides rescaling."""

from __future__ import annotations

import inspect
import math
import re
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import numpy
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import enorm
import enorm.compat
from enorm._descent import Solver
from properties import oracle, tolerances
from properties.specs import Hidden, Net
from properties.strategies import C_FACTORS, P_NORMS, nets
from properties.test_optimizer_state import DECLARED, both_ways, gradient_steps

NET = Net(inputs=3, hidden=(Hidden(out=4), Hidden(out=4)), seed=6)


def snapshot(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


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


# Untyped, for these calls are wrong on purpose.
WRONG: Any = enorm
BAD_ARGUMENTS: list[tuple[Callable[[Any], object], str]] = [
    (lambda m: WRONG.balance_(m, p=0), "p must be a number above 0, or infinity, got 0"),
    (lambda m: WRONG.ENorm(m, p=math.nan), "p must be a number above 0, or infinity, got nan"),
    (lambda m: WRONG.energy(m, p=-math.inf), "p must be a number above 0, or infinity, got -inf"),
    (lambda m: WRONG.energy(m, c={"0": 0.0}), "c of '0' must be a finite number above 0, got 0.0"),
    (lambda m: WRONG.energy(m, c={"1": 2.0}), "c names '1', which is no layer of the plan"),
    (lambda m: WRONG.balance_(m, c={0: 2.0}), "c names 0, which is no layer of the plan"),
    (lambda m: WRONG.ENorm(m, c={"": 2.0}), "c names '', which is no layer of the plan"),
    (
        lambda m: WRONG.balance_(m, c={"0": 0.0}),
        "c of '0' must be a finite number above 0, got 0.0",
    ),
    (
        lambda m: WRONG.residual(m, p=10**400),
        f"p must be a number above 0, or infinity, got {10**400}",
    ),
    (
        lambda m: WRONG.balance_(m, p=math.inf, solver="newton"),
        "Newton's steps need a smooth norm: use another solver with p = infinity",
    ),
    (lambda m: WRONG.residual(m, p="2"), "p must be a number above 0, or infinity, got '2'"),
    (lambda m: WRONG.balance_(m, c=-1.0), "c must be a finite number above 0, got -1.0"),
    (lambda m: WRONG.ENorm(m, c=0.0), "c must be a finite number above 0, got 0.0"),
    (
        lambda m: WRONG.balance_(m, solver="newtown"),
        "solver must be one of sor, cyclic, jacobi, newton, got 'newtown'",
    ),
    (lambda m: WRONG.balance_(m, tol=math.nan), "tol must be a number of at least 0, got nan"),
    (lambda m: WRONG.balance_(m, tol="a"), "tol must be a number of at least 0, got 'a'"),
    (
        lambda m: WRONG.balance_(m, max_cycles=0),
        "max_cycles must be a whole number of at least 1, got 0",
    ),
    (
        lambda m: WRONG.balance_(m, max_cycles=1.5),
        "max_cycles must be a whole number of at least 1, got 1.5",
    ),
    (lambda m: WRONG.ENorm(m, cycles=0), "cycles must be a whole number of at least 1, got 0"),
    (lambda m: WRONG.ENorm(m, every=0), "every must be a whole number of at least 1, got 0"),
    (
        lambda m: WRONG.ENorm(m, order="random"),
        "order must be 'cyclic' or 'jacobi', got 'random'",
    ),
    (
        lambda m: WRONG.balance_(m, batchnorm="exact"),
        "batchnorm must be 'affine' or 'ignore', got 'exact'",
    ),
    (
        lambda m: WRONG.residual(m, batchnorm=""),
        "batchnorm must be 'affine' or 'ignore', got ''",
    ),
    (
        lambda m: enorm.trace(m, exclude=["head"]),
        "exclude names 'head', which is no module of the model",
    ),
    (
        lambda m: enorm.ENorm(m).attach(),
        "attach needs the optimizer: ENorm(model, optimizer).attach()",
    ),
    *[
        (
            call,
            "plan was traced from another model than this Sequential: its modules, their settings "
            "or parameter shapes differ; call enorm.trace on it",
        )
        for call in (
            lambda m: enorm.balance_(m, enorm.trace(nn.Sequential(nn.ReLU()))),
            lambda m: enorm.ENorm(m, plan=enorm.trace(nn.Linear(2, 2))),
        )
    ],
    (
        lambda m: enorm.ENorm(m).load_state_dict({}),
        "this is no state of an ENorm: got keys []",
    ),
    (
        lambda m: enorm.ENorm(m).load_state_dict(None),  # type: ignore[arg-type]
        "this is no state of an ENorm: got NoneType",
    ),
    (
        lambda m: enorm.ENorm(m).load_state_dict({**enorm.ENorm(m).state_dict(), "calls": "1"}),
        "this is no state of an ENorm: got {'calls': '1', 'nonfinite': 0, 'precision': None}",
    ),
    (
        lambda m: enorm.error_bound(m, NET.draw_inputs(), rewrites=-3),
        "rewrites must be a whole number of at least 0, got -3",
    ),
    *[
        (
            lambda m, count=count: enorm.ENorm(m, [torch.optim.SGD(m.parameters())] * count),
            "an optimizer is listed twice: its state would be rescaled twice",
        )
        for count in (2, 3)
    ],
    (
        lambda m: enorm.compat.ENorm(m.state_dict().items(), None),
        "named_params must be pairs of names and parameters: pass model.named_parameters()",
    ),
    (
        lambda m: enorm.compat.ENorm(
            [*m.named_parameters(), ("weight", nn.Parameter(torch.ones(1, 1, 1, 1, 1, 1)))], None
        ),
        "'weight' has 6 axes, 2 to 5 are known",
    ),
    (
        lambda m: enorm.compat.ENorm(m, None),
        "named_params must be pairs of names and parameters: pass model.named_parameters()",
    ),
    (
        lambda m: enorm.compat.ENorm(m.parameters(), None),
        "named_params must be pairs of names and parameters: pass model.named_parameters()",
    ),
    (
        lambda _: enorm.balance_(nn.Sequential(nn.Linear(2, 2))),
        "plan has no groups, so there is nothing to rescale: no two layers follow each other",
    ),
    (
        lambda _: enorm.ENorm(nn.Sequential(nn.Linear(2, 2), nn.GELU(), nn.Linear(2, 2))),
        "plan has no groups, so there is nothing to rescale "
        "(1 (GELU): not known to be positively homogeneous)",
    ),
]


@pytest.mark.parametrize(("call", "message"), BAD_ARGUMENTS)
def test_bad_arguments_are_named_and_change_nothing(
    call: Callable[[Any], object], message: str
) -> None:
    """One sentence that names the parameter."""
    model = NET.build()
    before = snapshot(model)
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        call(model)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_exponents_of_any_kind_of_number() -> None:
    for p, c in ((Fraction(5, 2), Fraction(6, 5)), (numpy.float32(2.5), numpy.float32(1.2))):
        models = [NET.build(), NET.build()]
        enorm.ENorm(models[0], p=p, c=c).step()  # type: ignore[arg-type]
        enorm.ENorm(models[1], p=2.5, c=float(c)).step()
        for one, other in zip(*(model.parameters() for model in models), strict=True):
            assert torch.equal(one, other)
        assert enorm.energy(models[0], p, c) == enorm.energy(models[1], 2.5, float(c))  # type: ignore[arg-type]


def test_what_a_refused_stepper_leaves_behind() -> None:
    """Nothing, also while its error is kept."""
    model = NET.build()
    sgd = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(ValueError, match="compile=True needs a finite p") as kept:
        enorm.ENorm(model, sgd, precondition_bias=True, compile=True, p=math.inf)
    enorm.balance_(model)
    assert kept.value is not None


def test_a_step_that_raises_is_none() -> None:
    model = NET.build()
    average = {name: one.detach().clone() for name, one in model.named_parameters()}
    stepper = enorm.ENorm(model, copies=[average], every=2)
    stepper.step()
    lost = average.pop("0.weight")
    with pytest.raises(ValueError, match=r"a copy has no parameter '0\.weight'"):
        stepper.step()
    assert stepper.state_dict()["calls"] == 1
    average["0.weight"] = lost
    stepper.step()
    assert stepper.log2_scales


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
    text = "^optimizer must be a torch.optim.Optimizer, got "
    with pytest.raises(TypeError, match=rf"{text}Plan; a plan is given as plan=\.\.\.$"):
        enorm.ENorm(model, enorm.trace(model))  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=f"{text}float$"):
        enorm.balance_(model, optimizer=0.1)  # type: ignore[arg-type]


def test_unknown_optimizer_is_refused() -> None:
    """Carrying unknown state wrongly would be silent; the message names the optimizer."""
    model = Net(inputs=2, hidden=(Hidden(out=2),)).build()
    optimizer = torch.optim.LBFGS(model.parameters())
    text = (
        r"^optimizer is LBFGS, whose state enorm cannot carry along: use SGD, Adam, AdamW, .+, "
        r"or pass no optimizer if none has run yet$"
    )
    with pytest.raises(TypeError, match=text):
        enorm.ENorm(model, optimizer)
    with pytest.raises(TypeError, match=text):
        enorm.balance_(model, optimizer=optimizer)


def test_attach_runs_after_every_optimizer_step() -> None:
    """Attached and called by hand give the same weights; removing the handle ends it."""
    net = Net(inputs=3, hidden=(Hidden(out=4), Hidden(out=4)), seed=8)
    models = [net.build(), net.build()]
    for attached, model in zip((True, False), models, strict=True):
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        stepper = enorm.ENorm(model, optimizer, c=1.2, every=2)
        handle = stepper.attach() if attached else None
        for _ in range(4):
            gradient_steps(model, optimizer, net, 1)
            if not attached:
                stepper.step()
        if handle is not None:
            with pytest.raises(
                RuntimeError, match=r"^this ENorm is attached to its optimizer already$"
            ):
                stepper.attach()
            handle.remove()
            optimizer.zero_grad()
            before = [parameter.clone() for parameter in model.parameters()]
            optimizer.step()
            assert stepper.state_dict()["calls"] == 4
            assert all(map(torch.equal, before, model.parameters()))
    for one, other in zip(models[0].parameters(), models[1].parameters(), strict=True):
        assert torch.equal(one, other)


@given(nets(), P_NORMS, C_FACTORS)
def test_energy_and_residual_equal_the_oracles(net: Net, p: float, c: float) -> None:
    """Depth factors, dead units and BatchNorm included; the residual is that of one cycle."""
    model = net.build()
    assert enorm.energy(model, p, c) == pytest.approx(oracle.energy(model, p, c), rel=1e-12)
    _, scales = enorm.reference.cycle(oracle.chain(model), p=p, c=c)
    largest = max(abs(math.log(d)) for row in scales for d in row)
    assert enorm.residual(model, p, c) == pytest.approx(largest, rel=1e-9, abs=1e-12)
    enorm.balance_(model.double(), p=p, c=c, tol=1e-13, max_cycles=20_000)
    assert enorm.residual(model, p, c) < 1e-11


@given(nets(), P_NORMS, st.integers(2, 4))
def test_several_cycles_per_step(net: Net, p: float, cycles: int) -> None:
    """They move scale vectors only, and end at the weights of as many steps."""
    one, other = net.build(), net.build()
    enorm.ENorm(one, p=p, cycles=cycles).step()
    stepper = enorm.ENorm(other, p=p)
    for _ in range(cycles):
        stepper.step()
    rtol = tolerances.stored_weight(net.torch_dtype, oracle.fan_in(one), rewrites=cycles + 1)
    oracle.assert_same(net, f"{cycles} cycles", oracle.chain(one), oracle.chain(other), rtol)


def test_defaults_are_those_of_the_contract() -> None:
    """What a call without options means."""

    def defaults(function: Callable[..., object]) -> dict[str, object]:
        parameters = inspect.signature(function).parameters.values()
        return {one.name: one.default for one in parameters if one.default is not one.empty}

    shared = {"p": 2.0, "c": 1.0, "batchnorm": "affine"}
    assert defaults(enorm.energy) == defaults(enorm.residual) == shared
    assert defaults(enorm.balance_) == {
        **shared,
        "plan": None,
        "solver": "sor",
        "tol": 1e-8,
        "max_cycles": 1000,
        "power_of_two": False,
        "optimizer": None,
        "copies": (),
        "callback": None,
    }
    assert defaults(enorm.ENorm) == {
        **shared,
        "plan": None,
        "optimizer": None,
        "cycles": 1,
        "every": 1,
        "order": "cyclic",
        "precondition_bias": False,
        "copies": (),
        "compile": False,
    }
    assert defaults(enorm.trace) == {"example_inputs": None, "strict": False, "exclude": ()}
    assert defaults(enorm.verify) == {"plan": None, "rewrites": 1, "training": False}
    assert defaults(enorm.error_bound) == {"rewrites": 1, "training": False}
    assert defaults(enorm.reference.cycle) == {"p": 2.0, "c": 1.0, "order": "cyclic"}
    assert defaults(enorm.reference.energy) == {"p": 2.0, "c": 1.0}


@pytest.mark.parametrize(
    ("solver", "rate", "cycles"), [("cyclic", 0.5, 29), ("jacobi", 0.5**0.5, 57), ("sor", 0.17, 14)]
)
def test_what_balance_tells(solver: Solver, rate: float, cycles: int) -> None:
    """Cycles as the rate of q = 4 predicts, and the residual that is left in scale space."""
    net = Net(inputs=8, hidden=tuple(Hidden(out=8, bias=False) for _ in range(3)), outputs=4)
    model = net.build()
    before = enorm.energy(model)
    start = enorm.residual(model)
    result = enorm.balance_(model, solver=solver, tol=1e-9)
    assert result.converged
    assert result.residual <= 1e-9
    assert result.residual == pytest.approx(enorm.residual(model), rel=1e-3)
    assert result.energy_before == before
    assert result.energy_after == pytest.approx(enorm.energy(model), rel=1e-14)
    predicted = math.log(1e-9 / start) / math.log(rate)
    assert result.cycles == pytest.approx(predicted, abs=0.12 * predicted + 3), cycles
    short = enorm.balance_(net.build(), solver=solver, tol=1e-9, max_cycles=2)
    assert (short.cycles, short.converged) == (2, False)
    assert short.residual > 1e-3


def test_balance_carries_the_optimizers_state() -> None:
    """Weight times momentum stays, entry by entry."""
    model = NET.build()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0, momentum=0.9)
    gradient_steps(model, optimizer, NET, 2)

    def products() -> list[torch.Tensor]:
        return [p.detach() * optimizer.state[p]["momentum_buffer"] for p in model.parameters()]

    before = products()
    weight = model.get_parameter("2.weight").clone()
    enorm.balance_(model, c=2.0, optimizer=optimizer)
    assert not torch.allclose(weight, model.get_parameter("2.weight"))
    for old, new in zip(before, products(), strict=True):
        torch.testing.assert_close(new, old, rtol=1e-13, atol=0)


@pytest.mark.parametrize("kind", DECLARED)
@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_state_of_every_optimizer_commutes_with_a_cycle(kind: str, dtype: str) -> None:
    """On one network without zero gradients; the property draws many."""
    hidden = (Hidden(out=4, slope=0.1, bias=False),)
    net = Net(inputs=3, hidden=hidden, head_bias=False, decades=1, dtype=dtype, seed=4)
    (_, one), (_, other) = both_ways(net, kind, 1.2, 2)
    assert one.keys() == other.keys() != set()
    for name, buffer in one.items():
        rtol = 1e-9 if dtype == "float64" else 1e-3
        torch.testing.assert_close(
            buffer, other[name], rtol=rtol, atol=rtol * buffer.abs().max().item()
        )


def test_balance_with_an_exact_tolerance() -> None:
    """A residual that equals the tolerance has converged."""
    model = nn.Sequential(nn.Linear(1, 1, bias=False), nn.ReLU(), nn.Linear(1, 1, bias=False))
    for name in ("0.weight", "2.weight"):
        nn.init.constant_(model.get_parameter(name), 3.0)
    result = enorm.balance_(model, tol=0.0)
    assert (result.residual, result.converged, result.cycles) == (0.0, True, 1)


def test_out_of_range_is_one_sentence() -> None:
    """The parameter, its dtype, and what to do."""
    model = Net(inputs=1, hidden=(Hidden(out=1, bias=False),), outputs=1, dtype="float16").build()
    before = snapshot(model)
    text = (
        "parameter '0.weight' would leave the range of float16: nothing was rescaled; "
        "use a wider dtype, a c nearer to 1 or a larger p"
    )
    with pytest.raises(ValueError, match=f"^{re.escape(text)}$"):
        enorm.balance_(model, c=1e-12)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_state_of_a_stepper_comes_back_whole() -> None:
    """Calls, count, and the representation that its masses were found to need."""
    net = Net(inputs=3, hidden=(Hidden(out=4, dead_in=(1,)),), decades=30, dtype="float32", seed=2)
    stepper = enorm.ENorm(net.build(), p=7.0)
    stepper.step()
    state = stepper.state_dict()
    assert state["precision"] == "log"
    other = enorm.ENorm(net.build(), p=7.0)
    other.load_state_dict(state)
    assert other.state_dict() == state


def test_state_of_another_stepper_is_refused() -> None:
    """It names what differs."""
    state = enorm.ENorm(NET.build()).state_dict()
    model = Net(inputs=3, hidden=(Hidden(out=4),)).build()
    with pytest.raises(
        ValueError, match=r"^state belongs to an ENorm that scales other parameters \(see "
    ):
        enorm.ENorm(model).load_state_dict(state)


def test_frozen_layers_are_rescaled_with_their_neighbours() -> None:
    """Their function stays; ``exclude`` is what leaves parameters alone."""
    model = NET.build()
    model.get_parameter("2.weight").requires_grad_(False)
    before = snapshot(model)
    enorm.ENorm(model).step()
    assert not torch.equal(before["2.weight"], model.state_dict()["2.weight"])


def test_a_step_notices_another_module_or_dtype() -> None:
    model = NET.build()
    stepper = enorm.ENorm(model)
    model[1] = nn.GELU()
    before = snapshot(model)
    with pytest.raises(RuntimeError, match="a module inside Sequential was replaced after"):
        stepper.step()
    assert all(torch.equal(before[name], now) for name, now in snapshot(model).items())
    model = NET.build()
    stepper = enorm.ENorm(model)
    model.half()
    with pytest.raises(RuntimeError, match=r"was torch\.float64 when this ENorm was built and is"):
        stepper.step()


@pytest.mark.parametrize("name", ["0.weight", "0.bias"])
def test_what_would_vanish_is_an_error(name: str) -> None:
    """The smallest normal float16 is 2^-14; one weight beside larger ones may go below it."""
    model = nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 1))
    with torch.no_grad():
        model.get_parameter("0.weight").copy_(torch.tensor([[1.0, 2.0**-13], [1.0, 1.0]]))
        model.get_parameter("0.bias").fill_(1.0)
        model.get_parameter(name)[0] *= 2.0**-12
        model.get_parameter("2.weight").fill_(2.0**-12 if name == "0.bias" else 2.0**-20)
    model.half()
    before = snapshot(model)
    text = f"^a unit of parameter '{name}' would vanish in float16: nothing was rescaled; use a"
    with pytest.raises(ValueError, match=text):
        enorm.balance_(model)
    assert all(torch.equal(before[name], now) for name, now in snapshot(model).items())
    with torch.no_grad():
        model.get_parameter(name)[0] *= 2.0**12
        model.get_parameter("2.weight").fill_(2.0**-4)
    enorm.balance_(model)
