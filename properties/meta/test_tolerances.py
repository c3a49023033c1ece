"""Every bound holds for ordinary arithmetic, and is near enough to it to catch a wrong weight."""

from __future__ import annotations

import pytest

from properties.meta.coverage import DTYPES
from properties.meta.looseness import ratios


@pytest.mark.parametrize("dtype", DTYPES)
def test_bounds_hold_and_are_not_idle(dtype: str) -> None:
    """The worst of drawn networks is within each bound, and within three decades of it."""
    for name, found in ratios(dtype, 100).items():
        assert max(found) <= 1, f"{name} in {dtype}"
        assert max(found) >= 1e-3, f"{name} in {dtype}"
