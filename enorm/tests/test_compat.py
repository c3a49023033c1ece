"""The authors' signature: the same weights as Algorithm 1 in Jacobi order without the last pair.

Beside the authors' own code it is put by ``ENORM_AUTHORS=PATH pytest enorm/tests/test_compat.py``.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from torch import nn

import enorm.compat
from properties.adapters import authors
from properties.specs import Hidden, Net

LINEAR = Net(inputs=3, hidden=tuple(Hidden(out=4 + i, bias=False) for i in range(4)), seed=3)
CONV = Net(
    inputs=3,
    hidden=tuple(Hidden(out=4 + i, kernel=3, bias=False) for i in range(3)),
    positions=12,
    axes=2,
    head="conv",
    head_bias=False,
    seed=4,
)
BIASED = Net(inputs=3, hidden=tuple(Hidden(out=4 + i) for i in range(4)), decades=1, seed=3)


@pytest.mark.parametrize("net", [LINEAR, CONV], ids=["linear", "conv"])
def test_equal_to_algorithm_1_in_jacobi_order(net: Net) -> None:
    model = net.build()
    weights = [one.detach() for name, one in model.named_parameters() if "weight" in name]
    layers = [enorm.reference.ChainLayer(one) for one in weights]
    expected, _ = enorm.reference.cycle(layers[:-1], c=1.2, order="jacobi")
    last = weights[-1].clone()
    kind = "conv" if net is CONV else "linear"
    enorm.compat.ENorm(model.named_parameters(), None, kind, c=1.2).step()  # type: ignore[arg-type]
    for one, layer in zip(weights, expected, strict=False):
        torch.testing.assert_close(one, layer.weight, rtol=1e-12, atol=0)
    assert torch.equal(weights[-1], last)


@pytest.mark.skipif("ENORM_AUTHORS" not in os.environ, reason="ENORM_AUTHORS names no checkout")
@pytest.mark.parametrize("net", [LINEAR, CONV], ids=["linear", "conv"])
def test_equal_to_the_authors(net: Net) -> None:
    """Ten cycles with momentum in the convolutional case, which theirs carries too."""
    theirs = authors.load(Path(os.environ["ENORM_AUTHORS"]))._class
    models = [net.build(), net.build()]
    kind = "conv" if net is CONV else "linear"
    momentum = 0.9 if net is CONV else 0.0
    for make, model in zip((theirs, enorm.compat.ENorm), models, strict=True):
        optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=momentum)
        stepper = make(model.named_parameters(), optimizer, kind, c=1.2)
        for _ in range(10):
            optimizer.zero_grad()
            model(net.draw_inputs()).square().sum().backward()
            optimizer.step()
            stepper.step()
    for one, other in zip(models[0].parameters(), models[1].parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-12)


def test_biases_momentum_and_dead_units() -> None:
    """The three places where a user of the authors' code sees another, better result."""
    model = BIASED.build()
    with torch.no_grad():
        model.get_parameter("2.weight")[1] = 0
    before = BIASED.build()
    before.load_state_dict(model.state_dict())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0, momentum=0.9)
    model(BIASED.draw_inputs()).square().sum().backward()
    optimizer.step()
    weight = model.get_parameter("0.weight")
    kept = optimizer.state[weight]["momentum_buffer"] * weight.detach()
    enorm.compat.ENorm(model.named_parameters(), optimizer).step()
    torch.testing.assert_close(optimizer.state[weight]["momentum_buffer"] * weight, kept)
    assert enorm.verify(before, model, BIASED.draw_inputs()).ok


def test_what_is_no_chain() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.Linear(6, 5), nn.Linear(5, 2))
    with pytest.raises(ValueError, match=r"'1.weight' reads 6 values, no multiple of the 4 units"):
        enorm.compat.ENorm(model.named_parameters(), None)
    with pytest.raises(ValueError, match=r"named_params has 2 weight\(s\)"):
        enorm.compat.ENorm(model[:2].named_parameters(), None)
    with pytest.raises(
        ValueError, match=r"model_type is 'conv', but '0.weight' has shape \(4, 3\)"
    ):
        enorm.compat.ENorm(model.named_parameters(), None, "conv")
    with pytest.raises(ValueError, match="must be 'linear' or 'conv', got 'conv2d'"):
        enorm.compat.ENorm(model.named_parameters(), None, "conv2d")  # type: ignore[arg-type]
