"""What the suite measures with: its specs, its bound, its oracle."""

from __future__ import annotations

import torch
from hypothesis import given

import enorm
from properties.specs import Hidden, Net
from properties.strategies import ALL_DTYPES, nets


@given(nets(dtypes=ALL_DTYPES))
def test_repr_rebuilds_the_network(net: Net) -> None:
    """Equal spec, and every parameter and buffer equal bit for bit."""
    again = eval(repr(net), {"Net": Net, "Hidden": Hidden})
    assert again == net
    first, second = net.build().state_dict(), again.build().state_dict()
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert torch.equal(net.draw_inputs(), again.draw_inputs())


def test_the_bound_is_tight_enough_to_fail() -> None:
    """A weight that is off by a tenth of a percent is outside the bound in float32."""
    net = Net(inputs=5, hidden=(Hidden(out=6), Hidden(out=6)), dtype="float32", seed=5)
    before, after = net.build(), net.build()
    with torch.no_grad():
        after.get_parameter("2.weight").mul_(1.001)
    assert enorm.verify(before, after, net.draw_inputs()).ok is False
    assert enorm.verify(before, before, net.draw_inputs()).error == 0
