"""The statistics against scipy, by hand, and by simulation of what they promise."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from repro import statistics


def columns(rows: list[tuple[int, float]]) -> tuple[pd.Series, pd.Series]:
    table = pd.DataFrame(rows, columns=["depth", "value"])
    return table["value"], table["depth"]


def test_one_depth_is_students_t() -> None:
    sample = [0.3, 0.9, -0.1, 0.7, 0.5]
    found = statistics.over_depths(*columns([(9, value) for value in sample]))
    assert found is not None
    expected = stats.ttest_1samp(sample, 0)
    assert found.p == pytest.approx(expected.pvalue)
    assert found.interval == pytest.approx(tuple(expected.confidence_interval(0.95)))


def test_spread_is_pooled_within_depths_and_misses_are_left_out() -> None:
    values, depths = columns([(1, 1.0), (1, 3.0), (3, 10.0), (3, 14.0), (5, math.nan), (7, 2.0)])
    spread = statistics.pooled(values, depths)
    # (1 + 1 + 4 + 4) / 2; a cell of one value adds neither squares nor freedom.
    assert spread.s == pytest.approx(math.sqrt(5))
    assert spread.nu == 2
    assert not spread.decides
    found = statistics.over_depths(values, depths)
    assert found is not None
    assert found.mean == pytest.approx((2 + 12 + 2) / 3)
    assert found.error == pytest.approx(math.sqrt(5) / 3 * math.sqrt(1 / 2 + 1 / 2 + 1))
    assert found.p == 1.0, "2 degrees of freedom decide nothing"
    assert statistics.over_depths(values[4:5], depths[4:5]) is None


def test_published_means_bring_their_own_uncertainty() -> None:
    values, depths = columns([(d, v) for d in (1, 3) for v in (0.1, 0.5, 0.3)])
    alone = statistics.over_depths(values, depths)
    beside = statistics.over_depths(values, depths, published=[2, 1], extra=0.1)
    assert alone is not None
    assert beside is not None
    ratio = (2 / 3 + 1 / 2 + 1) / (2 / 3)
    assert beside.error == pytest.approx(alone.error * math.sqrt(ratio))
    assert beside.half == pytest.approx(alone.half * math.sqrt(ratio) + 0.1)


def test_holm_by_hand() -> None:
    assert statistics.holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert statistics.holm([0.9, 0.5]) == [1.0, 1.0]
    assert statistics.holm([]) == []


def test_seeds_needed_are_the_fewest_that_are_enough() -> None:
    values, depths = columns([(d, v) for d in (1, 3, 5) for v in (0.1, 0.9)])
    found = statistics.over_depths(values, depths)
    assert found is not None
    n = found.seeds_needed(abs(found.mean))
    assert n is not None

    def half(n: int) -> float:
        return float(stats.t.ppf(0.975, 3 * (n - 1)) * found.spread.s / math.sqrt(3 * n))

    assert half(n) < found.mean <= half(n - 1)


def test_seeds_needed_are_enough_for_a_verdict() -> None:
    """However large the effect: fewer than four degrees of freedom decide nothing."""
    found = statistics.over_depths(*columns([(1, 10.0), (1, 10.1), (1, 10.2)]))
    assert found is not None
    assert not found.spread.decides
    assert found.seeds_needed(abs(found.mean)) == 5


def test_no_number_of_seeds_outweighs_what_was_published() -> None:
    values, depths = columns([(d, v) for d in (1, 3, 5) for v in (0.1, 0.9)])
    found = statistics.over_depths(values, depths, published=[1, 1, 1], extra=0.1)
    assert found is not None
    # With seeds without end: z(0.975) s sqrt(3 / 1) / 3, and what was read off the plot.
    least = 1.96 * found.spread.s / math.sqrt(3) + 0.1
    assert found.seeds_needed(least) is None
    n = found.seeds_needed(1.05 * least)
    assert n is not None

    def half(n: int) -> float:
        t = stats.t.ppf(0.975, 3 * (n - 1))
        return float(t * found.spread.s * math.sqrt((1 / n + 1) / 3) + 0.1)

    assert half(n) < 1.05 * least <= half(n - 1)


def test_band_covers_all_points_of_a_curve_in_95_of_100_repetitions() -> None:
    """Ten depths, two of our runs and one published run each, all alike: every point inside."""
    rng = np.random.default_rng(0)
    depths = np.repeat(np.arange(10), 2)
    inside = 0
    for _ in range(400):
        ours, theirs = rng.normal(size=20), rng.normal(size=10)
        spread = statistics.pooled(pd.Series(ours), pd.Series(depths))
        half = statistics.band(spread, 2, 1, 10, 0.0)
        inside += bool((np.abs(ours.reshape(10, 2).mean(1) - theirs) <= half).all())
    # Bonferroni is a little wide: at least 95 %, less three standard errors of 400 repetitions.
    assert inside / 400 > 0.95 - 3 * math.sqrt(0.95 * 0.05 / 400)
    assert inside < 400, "a band that never fails says nothing"


def test_bootstrap_is_shown_from_five_seeds_on_and_is_repeatable() -> None:
    seeds = pd.Series([0, 1, 2, 3, 4] * 2)
    values = pd.Series(np.arange(10.0))
    found = statistics.bootstrap(values, seeds)
    assert found is not None
    assert found == statistics.bootstrap(values, seeds)
    assert found[0] < values.mean() < found[1]
    assert statistics.bootstrap(values[seeds < 4], seeds[seeds < 4]) is None
