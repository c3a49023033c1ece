"""Strategies reach what they claim, and shrink to the smallest network that shows it."""

from __future__ import annotations

import pytest
from hypothesis import find, settings

from properties.meta.coverage import FEATURES, NETS, shares


def test_every_feature_is_drawn() -> None:
    """Each in at least one network of fifty: in 60 examples it is missing by a chance of 0.3."""
    rare = {name: share for name, share in shares(600).items() if share < 0.02}
    assert not rare


@pytest.mark.parametrize("feature", FEATURES)
def test_features_shrink_to_small_networks(feature: str) -> None:
    """Little more than what shows the feature is left; two idle layers of one unit at most."""
    smallest = find(
        NETS,
        FEATURES[feature],
        settings=settings(settings.get_profile("ci"), max_examples=2000, database=None),
    )
    layers = int(feature.removeprefix("depth ")) if feature.startswith("depth") else 1
    assert len(smallest.hidden) <= layers + 2
    assert smallest.inputs == smallest.outputs == 1
    assert all(layer.out == 1 for layer in smallest.hidden)
    # A flatten of five positions along three axes makes 125 columns.
    assert sum(parameter.numel() for parameter in smallest.build().parameters()) <= 130
    assert smallest.seed == 0
