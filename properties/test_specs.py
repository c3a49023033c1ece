"""A printed spec is all that is needed to build the same network again."""

from __future__ import annotations

import torch
from hypothesis import given

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
