"""Small images and specs that keep the real path and take little time."""

from __future__ import annotations

import pytest

from repro.data import Images, synthetic
from repro.spec import RunSpec


@pytest.fixture(scope="session")
def images() -> Images:
    """Few synthetic images: 600 make two full batches of 256 and one of 88."""
    return synthetic(train=600, test=200)


@pytest.fixture
def spec() -> RunSpec:
    """A run that takes a fraction of a second."""
    return RunSpec("enorm", 2, 0, 0.1, epochs=2, train_images=600, width=32)
