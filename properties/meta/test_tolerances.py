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
    """A unit in front of which there is only rounding has a scale that is far from 1."""
    net = Net(inputs=2, hidden=(Hidden(out=3, bias=False),) * 2, dtype="float64", seed=1)
    measured = []
    for exponent in range(40, 100):
        model = net.build()
        with torch.no_grad():
            oracle.chain(model)[0].weight[1] *= 10.0**-exponent
        before = copy.deepcopy(model)
        enorm.ENorm(model).step()
        expected = oracle.cycle(oracle.chain(before), 2.0, 1.0, "cyclic")
        errors = [
            ((mine.weight - theirs.weight).abs() / theirs.weight.abs()).max().item()
            for mine, theirs in zip(oracle.chain(model), expected, strict=True)
        ]
        log_range = oracle.log_range(before, model)
        bound = tolerances.stored_weight(net.torch_dtype, oracle.fan_in(model), log_range=log_range)
        assert max(errors) <= bound
        measured.append(max(errors) / (log_range * 2.0**-53))
    assert max(measured) >= 0.2, "the term is not idle"
