"""The oracle itself, by hand."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from enorm.reference import ChainLayer, cycle, energy, norm


def tensor(*values: float) -> Tensor:
    return torch.tensor(values)


def test_two_weights() -> None:
    """2 and 8: d = sqrt(8 / 2) = 2 makes both 4. What goes in stays; what comes out is float64."""
    layers = [
        ChainLayer(tensor(2.0)[:, None], tensor(3.0)),
        ChainLayer(tensor(8.0)[:, None], tensor(5.0)),
    ]
    after, scales = cycle(layers)
    assert scales == [[2.0]]
    assert [layer.weight.item() for layer in after] == [4.0, 4.0]
    assert [layer.bias.item() for layer in after if layer.bias is not None] == [6.0, 5.0]
    assert all(layer.weight.dtype is torch.float64 for layer in after)
    assert all(layer.bias is not None and layer.bias.dtype is torch.float64 for layer in after)
    assert layers[0].weight.item() == 2
    assert energy(layers) == 68
    assert energy(after) == 32


def test_batchnorm_stands_between() -> None:
    """γ = 3 and a column of 12: d = 2; the rows in front and their bias stay."""
    layers = [
        ChainLayer(tensor(5.0)[:, None], tensor(7.0), tensor(3.0), tensor(1.0)),
        ChainLayer(tensor(12.0)[:, None]),
    ]
    after, scales = cycle(layers)
    assert scales == [[2.0]]
    first, second = after
    assert (first.weight.item(), second.weight.item()) == (5.0, 6.0)
    for found, value in ((first.bias, 7.0), (first.gamma, 6.0), (first.beta, 2.0)):
        assert found is not None
        assert found.item() == value
        assert found.dtype is torch.float64
    assert energy(layers, p=1.0, c=2.0) == 2 * (5 + 3) + 12


def test_depth_factors_orders_and_blocks() -> None:
    """C = 4 halves d; the third weight sees the second's rows scaled in cyclic order only."""
    layers = [ChainLayer(tensor(value)[:, None]) for value in (1.0, 16.0, 1.0)]
    cyclic, scales = cycle(layers, c=4.0)
    assert scales[0] == [2.0]
    assert scales[1] == pytest.approx([math.sqrt(1 / 8) / 2])
    assert cyclic[1].weight.item() == pytest.approx(8 * math.sqrt(1 / 8) / 2)
    _, jacobi = cycle(layers, c=4.0, order="jacobi")
    assert jacobi == [[2.0], [1 / 8]]
    assert energy(layers, p=2.0, c=4.0) == 16**2 + (4 * 16) ** 2 + 1
    blocks = [ChainLayer(tensor(1.0, 1.0)[:, None]), ChainLayer(tensor(3.0, 4.0, 0.0, 0.0)[None])]
    after, scales = cycle(blocks)
    assert scales == [[math.sqrt(5), 1.0]]
    assert after[1].weight.tolist() == [[3 / math.sqrt(5), 4 / math.sqrt(5), 0.0, 0.0]]


def test_norms_of_extreme_numbers() -> None:
    """No sum of squares overflows or vanishes on the way."""
    assert norm(torch.zeros(3), 2.0) == 0
    assert norm(tensor(3.0, -4.0), 2.0) == 5
    assert norm(tensor(1.0, -2.0), 1.0) == 3
    assert norm(torch.tensor([3e300, 4e300], dtype=torch.float64), 2.0) == pytest.approx(5e300)
    assert norm(torch.tensor([3e-300, 4e-300], dtype=torch.float64), 2.0) == pytest.approx(5e-300)
