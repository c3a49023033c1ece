"""Rescaling keeps the function: within the rounding bound, or bit for bit with powers of two."""

from __future__ import annotations

import copy
import math

import torch
from hypothesis import assume, event, example, given, target
from hypothesis import strategies as st
from torch import nn

import enorm
from properties.specs import Hidden, Net
from properties.strategies import ALL_DTYPES, C_FACTORS, P_NORMS, WIDE_DTYPES, nets


def largest_activation(model: nn.Module, inputs: torch.Tensor) -> float:
    """Of all layers' outputs, in float64, where nothing overflows."""
    wide = copy.deepcopy(model).double()
    found = [0.0]
    for module in wide.modules():
        module.register_forward_hook(lambda _m, _i, out: found.append(out.abs().max().item()))
    wide(inputs.double())
    return max(found)


def assert_kept(net: Net, before: nn.Module, after: nn.Module, rewrites: int) -> None:
    """Fail with spec, error and bound unless the function of ``after`` is that of ``before``."""
    inputs = net.draw_inputs()
    limit = torch.finfo(net.torch_dtype).max / 4
    # What overflows in its own dtype has no function to keep; half precision comes near that.
    assume(max(largest_activation(model, inputs) for model in (before, after)) < limit)
    found = enorm.verify(before, after, inputs, rewrites=rewrites)
    assert found.ratio is not None, found.reason
    target(found.ratio, label="error / bound")
    assert found.ok, f"{net!r}\n{net.dtype} on cpu: error {found.error}, bound {found.bound}"


@given(nets(dtypes=ALL_DTYPES), P_NORMS, C_FACTORS, st.sampled_from(["cyclic", "jacobi"]))
def test_cycles_keep_the_function(net: Net, p: float, c: float, order: str) -> None:
    """Three cycles, each stored in the parameters' own dtype."""
    model = net.build()
    before = copy.deepcopy(model)
    stepper = enorm.ENorm(model, p=p, c=c, order=order)  # type: ignore[arg-type]
    for _ in range(3):
        stepper.step()
    assert stepper.nonfinite == 0
    event(f"dtype {net.dtype}")
    assert_kept(net, before, model, rewrites=3)


@given(nets(dtypes=ALL_DTYPES), P_NORMS, C_FACTORS, st.sampled_from(["sor", "cyclic", "jacobi"]))
def test_balance_keeps_the_function(net: Net, p: float, c: float, solver: str) -> None:
    """The whole way to the minimum is one write."""
    model = net.build()
    before = copy.deepcopy(model)
    enorm.balance_(model, p=p, c=c, solver=solver, max_cycles=200)  # type: ignore[arg-type]
    assert_kept(net, before, model, rewrites=1)


@given(nets(dtypes=WIDE_DTYPES, max_decades=3), P_NORMS, C_FACTORS)
@example(Net(inputs=2, hidden=(Hidden(out=2), Hidden(out=2)), dtype="bfloat16", seed=1), 2.0, 1.2)
def test_powers_of_two_keep_every_bit(net: Net, p: float, c: float) -> None:
    """Outputs and, in train mode, batch statistics too are equal bit for bit."""
    model = net.build()
    before = copy.deepcopy(model)
    enorm.balance_(model, p=p, c=c, power_of_two=True)
    inputs = net.draw_inputs()
    for training in (False, True):
        before.train(training)
        model.train(training)
        assert torch.equal(before(inputs), model(inputs)), f"{net!r}, training={training}"


def test_powers_of_two_move_something() -> None:
    """The exactness above is not that of doing nothing."""
    net = Net(inputs=3, hidden=(Hidden(out=4), Hidden(out=4)), decades=3, seed=3)
    model = net.build()
    before = model.get_parameter("0.weight").detach().clone()
    result = enorm.balance_(model, power_of_two=True)
    assert result.converged
    assert result.energy_after < 0.5 * result.energy_before
    ratios = set((model.get_parameter("0.weight") / before).flatten().tolist())
    assert ratios != {1.0}
    assert all(math.log2(ratio).is_integer() for ratio in ratios)


def test_ignoring_batchnorm_changes_the_function() -> None:
    """The published rule does not keep the function of a network with BatchNorm."""
    net = Net(inputs=3, hidden=(Hidden(out=4, batchnorm=True), Hidden(out=4)), seed=3)
    model = net.build()
    before = copy.deepcopy(model)
    enorm.balance_(model, batchnorm="ignore")
    found = enorm.verify(before, model, net.draw_inputs())
    assert found.ok is False


def test_the_bound_is_tight_enough_to_fail() -> None:
    """A weight that is off by a tenth of a percent is outside the bound in float32."""
    net = Net(inputs=5, hidden=(Hidden(out=6), Hidden(out=6)), dtype="float32", seed=5)
    before, after = net.build(), net.build()
    with torch.no_grad():
        after.get_parameter("2.weight").mul_(1.001)
    assert enorm.verify(before, after, net.draw_inputs()).ok is False
    assert enorm.verify(before, before, net.draw_inputs()).error == 0
