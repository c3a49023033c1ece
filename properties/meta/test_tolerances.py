"""Every bound holds for ordinary arithmetic, and is near enough to it to catch a wrong weight."""

from __future__ import annotations

import copy

import pytest
import torch

import enorm
from properties import oracle, tolerances
from properties.meta.coverage import DTYPES
from properties.meta.looseness import ratios
from properties.specs import Hidden, Net


@pytest.mark.parametrize("dtype", DTYPES)
def test_bounds_hold_and_are_not_idle(dtype: str) -> None:
    """The worst of drawn networks is within each bound, and within three decades of it."""
    for name, found in ratios(dtype, 100).items():
        assert max(found) <= 1, f"{name} in {dtype}"
        assert max(found) >= 1e-3, f"{name} in {dtype}"


def test_scales_of_noise_are_within_their_own_term() -> None:
    """A unit in front of which there is only rounding has a scale that is far from 1.

    Without the term for logarithms the bound would not hold.
    """
    net = Net(inputs=1, hidden=(Hidden(out=1, bias=False),), outputs=1, dtype="float64", seed=1)
    beyond = 0
    for exponent in range(40, 150):
        model = net.build()
        with torch.no_grad():
            model.get_parameter("0.weight").mul_(10.0**-exponent)
        before = copy.deepcopy(model)
        enorm.ENorm(model).step()
        expected = oracle.cycle(oracle.chain(before), 2.0, 1.0, "cyclic")
        error = max(
            ((mine.weight - theirs.weight).abs() / theirs.weight.abs()).max().item()
            for mine, theirs in zip(oracle.chain(model), expected, strict=True)
        )
        dtype, fan_in = net.torch_dtype, oracle.fan_in(model)
        log_range = oracle.log_range(before, model)
        assert error <= tolerances.stored_weight(dtype, fan_in, log_range=log_range)
        beyond += error > tolerances.stored_weight(dtype, fan_in)
    assert beyond > 0
