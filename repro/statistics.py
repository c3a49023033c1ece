"""Intervals, as the project's design fixed them before any run; α = 0.05 throughout.

Every estimate is a mean over depths of values with a spread that is pooled within depths: with n_d
values at depth d, J depths and ``ν = Σ (n_d − 1)``,

    s² = Σ_d Σ_i (x_di − x̄_d)² / ν,    SE² = s² / J² Σ_d 1/n_d,    interval = mean ± t(0.975, ν) SE.

Fewer than 4 degrees of freedom decide nothing. The pooled s takes runs to spread alike at every
depth: where most of ν comes from depths at which they spread less, intervals are too narrow.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy import stats

ALPHA = 0.05
LEAST_FREEDOM = 4
MOST_SEEDS = 1000


@dataclass(frozen=True)
class Spread:
    """A standard deviation pooled within cells, and its degrees of freedom."""

    s: float
    nu: int

    @property
    def decides(self) -> bool:
        """Whether it has enough degrees of freedom for a verdict."""
        return self.nu >= LEAST_FREEDOM

    def quantile(self, tails: float = ALPHA) -> float:
        """Student's t that both tails together exceed with probability ``tails``."""
        return float(stats.t.isf(tails / 2, self.nu)) if self.nu else math.inf


def pooled(values: pd.Series[float], cells: pd.Series[int]) -> Spread:
    """``s² = ΣΣ (x − x̄_cell)² / ν`` over finite values; ν may be zero, and s then is NaN."""
    kept = values.dropna()
    groups = kept.groupby(cells.loc[kept.index])
    nu = int((groups.count() - 1).sum())
    squares = float(((kept - groups.transform("mean")) ** 2).sum())
    return Spread(math.sqrt(squares / nu) if nu else math.nan, nu)


@dataclass(frozen=True)
class Estimate:
    """A mean over depths.

    Attributes:
        mean: of the depths' means.
        error: its standard error.
        spread: of a single value about its depth's mean.
        by_depth: mean and number of values at each depth.
        extra: added to the interval on both sides, for what was read off a plot.
        share: ``error² / spread.s²`` if each cell had one value.
        fixed: what of ``error² / spread.s²`` no value more of ours makes smaller.
        cells: with values of ours.
    """

    mean: float
    error: float
    spread: Spread
    by_depth: dict[int, tuple[float, int]]
    extra: float = 0.0
    share: float = 1.0
    fixed: float = 0.0
    cells: int = 1

    @property
    def half(self) -> float:
        """Half the width of the 95 % interval."""
        return self.spread.quantile() * self.error + self.extra

    @property
    def interval(self) -> tuple[float, float]:
        """The 95 % interval."""
        return self.mean - self.half, self.mean + self.half

    @property
    def p(self) -> float:
        """Two-sided probability of a mean this far from zero, were it zero; 1 if undecided."""
        if not self.spread.decides:
            return 1.0
        if self.error == 0:
            return float(self.mean == 0)
        return float(2 * stats.t.sf(abs(self.mean) / self.error, self.spread.nu))

    def limit(self, tails: float = ALPHA) -> float:
        """What ``half`` comes to with more and more seeds: published runs get no more."""
        return float(stats.norm.isf(tails / 2)) * self.spread.s * math.sqrt(self.fixed) + self.extra

    def seeds_needed(self, margin: float, tails: float = ALPHA) -> int | None:
        """Smallest n in each cell that decides, with ``half < margin`` if mean and s stay.

        That is, with ν = cells (n − 1),
        ``t(1 − tails / 2, ν) s sqrt(share / n + fixed) + extra < margin``; ``tails`` is smaller
        than α where it is shared with other tests. None above 1000, or where no s is known.
        """
        if not self.spread.nu:
            return None
        for n in range(2, MOST_SEEDS + 1):
            spread = Spread(self.spread.s, self.cells * (n - 1))
            error = spread.s * math.sqrt(self.share / n + self.fixed)
            if spread.decides and spread.quantile(tails) * error + self.extra < margin:
                return n
        return None


def over_depths(
    values: pd.Series[float],
    depths: pd.Series[int],
    spread: Spread | None = None,
    published: Sequence[int] = (),
    extra: float = 0.0,
) -> Estimate | None:
    """The mean over depths of ``values``; None without any.

    Args:
        values: finite ones count.
        depths: of each value.
        spread: of a single value; None pools it from ``values``.
        published: where the values are differences from published means, over how many runs each
            depth's was taken; ``SE² = s² / J² Σ (1/n_d + 1/runs_d)`` then.
        extra: added to the interval.
    """
    kept = values.dropna()
    if kept.empty:
        return None
    cells = kept.groupby(depths.loc[kept.index]).agg(["mean", "count"])
    spread = pooled(values, depths) if spread is None else spread
    depths_run = len(cells)
    fixed = sum(1 / runs for runs in published) / depths_run**2
    error = spread.s * math.sqrt(float((1 / cells["count"]).sum()) / depths_run**2 + fixed)
    by_depth = {int(depth): (float(m), int(n)) for depth, m, n in cells.itertuples()}
    mean = float(cells["mean"].mean())
    return Estimate(mean, error, spread, by_depth, extra, 1 / depths_run, fixed, depths_run)


def band(spread: Spread, runs: int, published_runs: int, depths: int, reading: float) -> float:
    """Half-width of the band around a published point.

    ``t(1 − 0.05 / (2 m), ν) s sqrt(1/n_ours + 1/runs_averaged) + reading error``, m = depths run.
    """
    wide = spread.quantile(ALPHA / depths) * spread.s
    return wide * math.sqrt(1 / runs + 1 / published_runs) + reading


def holm(p: Sequence[float]) -> list[float]:
    """p-values adjusted for their number (Holm 1979), in the order given."""
    order = np.argsort(p)
    adjusted = np.empty(len(p))
    largest = 0.0
    for rank, index in enumerate(order):
        largest = max(largest, min(1.0, (len(p) - rank) * p[index]))
        adjusted[index] = largest
    return [float(value) for value in adjusted]


def bootstrap(values: pd.Series[float], seeds: pd.Series[int]) -> tuple[float, float] | None:
    """Percentile interval of the mean over whole seeds, 9,999 resamples; shown, never decides.

    None for fewer than 5 seeds.
    """
    kept = values.dropna()
    means = kept.groupby(seeds.loc[kept.index]).mean()
    if len(means) < 5:
        return None
    found = stats.bootstrap(
        (means.to_numpy(),),
        np.mean,
        n_resamples=9999,
        method="percentile",
        rng=np.random.default_rng(0),
    )
    return float(found.confidence_interval.low), float(found.confidence_interval.high)
