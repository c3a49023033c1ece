"""What accuracies decide: contrasts of methods, and curves beside published ones.

A contrast is reproduced with the right sign and a Holm-corrected p below 0.05, not reproduced with
the wrong sign and the same; a curve by where its interval lies.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import pandas as pd

from repro.claims import Claim, Finding, Verdict
from repro.statistics import (
    ALPHA,
    MOST_SEEDS,
    Estimate,
    Spread,
    bootstrap,
    holm,
    over_depths,
    pooled,
)
from repro.table import Runs, bands, listed, of_series, published

_QUANTIFIERS = {"almost every": 9, "most": 6, "always": 10}
_DEPTHS = 10


@dataclass(frozen=True)
class Comparison:
    """Contrasts that a claim says to be positive, and the p-value of all of them at once."""

    estimates: tuple[Estimate, ...]
    pairs: tuple[tuple[str, str], ...]

    @property
    def right(self) -> bool:
        """Whether all have the sign that is claimed."""
        return all(one.mean > 0 for one in self.estimates)

    @property
    def p(self) -> float:
        """The largest if all signs are right; else the smallest of the wrong, for their number."""
        if self.right:
            return max(one.p for one in self.estimates)
        wrong = min(one.p for one in self.estimates if one.mean <= 0)
        return min(1.0, len(self.estimates) * wrong)


def contrast(runs: Runs, above: str, below: str) -> Estimate | None:
    """Mean over depths of the difference at equal depth and seed; None without a pair."""
    pairs = paired(runs, above, below)
    return over_depths(pairs["difference"], pairs["depth"])


def paired(runs: Runs, above: str, below: str) -> pd.DataFrame:
    """``depth``, ``seed`` and ``difference`` of finite runs that both series have."""
    finished = runs.finished
    sides = [
        finished[finished["series"] == series].set_index(["depth", "seed"])["accuracy"].dropna()
        for series in (above, below)
    ]
    difference = (sides[0] - sides[1]).dropna().rename("difference")
    return difference.reset_index()


def comparison(claim: Claim, runs: Runs) -> Comparison | None:
    """What a claim of the tests contrast, contrasts, best or dip compares; None without runs."""
    options = claim.options
    if claim.test == "contrast":
        pairs = [(options["above"], options["below"])]
    elif claim.test == "best":
        pairs = [(options["series"], other) for other in options["others"]]
    elif claim.test == "contrasts":
        pairs = [(above, below) for above, below in options["pairs"]]
    else:
        dip = _dip(claim, runs)
        return None if dip is None else Comparison((dip,), ((options["series"], "before"),))
    estimates = [contrast(runs, above, below) for above, below in pairs]
    if any(one is None for one in estimates):
        return None
    return Comparison(tuple(one for one in estimates if one is not None), tuple(pairs))


def _dip(claim: Claim, runs: Runs) -> Estimate | None:
    """How far accuracy at one depth lies below the mean of others; positive where it does.

    Of the seeds that all these depths have; the spread is that of a single run of the series.
    """
    series, depth = claim.options["series"], claim.options["depth"]
    own = of_series(runs.finished, series)
    part = own[own["depth"].isin([depth, *claim.options["before"]])].dropna(subset="accuracy")
    seeds = [set(one) for _, one in part.groupby("depth")["seed"]]
    if len(seeds) < 1 + len(claim.options["before"]):
        return None
    part = part[part["seed"].isin(set.intersection(*seeds))]
    if part.empty:
        return None
    cells = part.groupby("depth")["accuracy"].agg(["mean", "count"])
    there, before = cells.loc[depth], cells.drop(depth)
    spread = pooled(own["accuracy"], own["depth"])
    share = 1 / there["count"] + float((1 / before["count"]).sum()) / len(before) ** 2
    return Estimate(
        float(before["mean"].mean() - there["mean"]),
        spread.s * math.sqrt(share),
        spread,
        {int(each): (float(mean), int(n)) for each, mean, n in cells.itertuples()},
        share=1 + 1 / len(before),
        cells=len(cells),
    )


def from_comparison(claim: Claim, one: Comparison, p: float, runs: Runs) -> Finding:
    """The finding, ``p`` being what Holm's correction makes of that of ``one``."""
    decided = all(estimate.spread.decides for estimate in one.estimates)
    verdict: Verdict = "inconclusive"
    notes = []
    significant = decided and p < ALPHA
    if significant:
        verdict = "reproduced" if one.right else "not reproduced"
    if claim.test == "contrasts":
        positive, _, depths = _counts(one)
        notes.append(f"all right at {positive} of {depths} depths")
    if "quantifier" in claim.options:
        needed = _QUANTIFIERS[claim.options["quantifier"]]
        positive, wrong, depths = _counts(one)
        notes.append(f"right at {positive} of {depths} depths, {needed} of {_DEPTHS} are claimed")
        if wrong > _DEPTHS - needed:
            verdict = "not reproduced"
            notes.append(f"significantly wrong at {wrong}")
        elif verdict == "reproduced" and positive < needed:
            verdict = "inconclusive"
    notes.append(f"p = {p:.2g} (Holm)" if decided else "too few runs for a verdict")
    if claim.test == "dip":
        notes.append(f"against depths {listed(claim.options['before'])}, at the seeds of all")
    else:
        notes[-1] += _which(one.estimates[0])
    if verdict == "inconclusive" and significant:
        notes.append(_exceptions(one))
    elif verdict == "inconclusive":
        # What Holm's correction leaves to this claim among the others, as they are now.
        tails = ALPHA * min(1.0, one.p / p) if p else ALPHA
        notes.append(_would_settle([(each, abs(each.mean)) for each in one.estimates], tails))
    note = "; ".join(notes)
    if claim.test == "contrast":
        note += _resampled(runs, *one.pairs[0])
    return Finding(
        claim,
        verdict,
        ", ".join(_signed(estimate.mean) for estimate in one.estimates),
        ", ".join(_interval(estimate.interval) for estimate in one.estimates),
        _size(one.estimates[0]),
        note,
    )


def _resampled(runs: Runs, above: str, below: str) -> str:
    """What resampling seeds gives for a contrast, to be added to its note; empty for few seeds."""
    pairs = paired(runs, above, below)
    # A seed that misses depths has a mean of its own.
    whole = pairs.groupby("seed")["depth"].transform("nunique") == pairs["depth"].nunique()
    shown = bootstrap(pairs["difference"][whole], pairs["seed"][whole])
    return "" if shown is None else f"; bootstrap over seeds {_interval(shown)}"


def _counts(one: Comparison) -> tuple[int, int, int]:
    """At how many depths all contrasts are positive, any is significantly negative, and any is."""
    depths = set.intersection(*(set(estimate.by_depth) for estimate in one.estimates))
    positive = sum(all(e.by_depth[d][0] > 0 for e in one.estimates) for d in depths)
    wrong: set[int] = set()
    for estimate in one.estimates:
        at = [
            Estimate(mean, estimate.spread.s / math.sqrt(n), estimate.spread, {depth: (mean, n)})
            for depth, (mean, n) in estimate.by_depth.items()
        ]
        adjusted = holm([single.p for single in at])
        for single, p in zip(at, adjusted, strict=True):
            if single.mean < 0 and p < ALPHA:
                wrong |= set(single.by_depth)
    return positive, len(wrong), len(depths)


def _exceptions(one: Comparison) -> str:
    """What is missing where a contrast holds over depths, and not at as many as are claimed."""
    if min(len(estimate.by_depth) for estimate in one.estimates) < _DEPTHS:
        return "more depths are needed"
    # Holm's correction takes all depths to be tested against the smallest of them.
    needed: dict[int, float] = {}
    for estimate in one.estimates:
        for depth, (mean, n) in estimate.by_depth.items():
            if mean < 0:
                seeds = _seeds_that_show(mean, n, estimate.spread)
                needed[depth] = max(needed.get(depth, n + 1), seeds)
    if not needed:
        return "more seeds are needed"
    counts = ", ".join(
        f"{n} at depth {depth}" if n <= MOST_SEEDS else f"more than {MOST_SEEDS} at depth {depth}"
        for depth, n in sorted(needed.items())
    )
    return f"seeds that would show the exceptions: {counts}"


def _seeds_that_show(mean: float, n: int, spread: Spread) -> float:
    """Smallest number of seeds at one depth, now n, by which ``mean`` is none by chance.

    Each seed more is a degree of freedom more; mean and s are taken to stay.
    """
    for seeds in range(n + 1, MOST_SEEDS + 1):
        grown = Spread(spread.s, spread.nu + seeds - n)
        if grown.quantile(ALPHA / _DEPTHS) * grown.s / math.sqrt(seeds) < abs(mean):
            return seeds
    return math.inf


def _would_settle(estimates: Sequence[tuple[Estimate, float]], tails: float = ALPHA) -> str:
    """How many seeds bring each half-width below its margin, if means and spreads stay."""
    if not all(estimate.spread.nu for estimate, _ in estimates):
        return "more seeds are needed, for there is no spread yet"
    seeds = [estimate.seeds_needed(margin, tails) for estimate, margin in estimates]
    known = [n for n in seeds if n is not None]
    if len(known) < len(seeds):
        if any(estimate.limit(tails) >= margin for estimate, margin in estimates):
            return "no number of seeds here would settle this effect: too few runs were published"
        return f"more than {MOST_SEEDS} seeds would settle this effect"
    return f"{max(known)} seeds would settle this effect"


def equal(claim: Claim, runs: Runs) -> Finding:
    """Whether the interval of a contrast is inside the band."""
    one, other = claim.options["one"], claim.options["other"]
    found = contrast(runs, one, other)
    if found is None:
        return Finding(claim, "not run")
    finding = _in_band(claim, found, claim.options["band"])
    return replace(finding, note=finding.note + _resampled(runs, one, other))


def curve(runs: Runs, series: str, known: pd.DataFrame) -> Estimate | None:
    """Mean over depths of our accuracy minus a published one, with that one's own uncertainty."""
    own = of_series(runs.finished, series).dropna(subset="accuracy")
    known = known.dropna(subset="test_accuracy_percent")
    own = own[own["depth"].isin(known.index)]
    if own.empty or not runs.comparable:
        return None
    at = known.loc[sorted(own["depth"].unique())]
    difference = own["accuracy"] - own["depth"].map(known["test_accuracy_percent"])
    return over_depths(
        difference,
        own["depth"],
        published=[int(n) for n in at["runs_averaged"]],
        extra=float(at["reading_error_percent"].mean()),
    )


def beside_published(claim: Claim, runs: Runs) -> Finding:
    """Whether the mean over depths of our accuracy minus a published one is inside the band."""
    series = claim.options["series"]
    known = published(claim.options["figure"], claim.options.get("published", series))
    found = curve(runs, series, known)
    if found is None:
        return Finding(claim, "not run")
    finding = _in_band(claim, found, claim.options.get("band", [-1.0, 1.0]))
    points = bands(of_series(runs.finished, series), known)
    outside = _outside(points)
    note = f"{len(outside)} of {len(points)} points outside the band of a published curve"
    if len(outside):
        note += f" ({_at(outside)})"
    return replace(finding, note=f"{finding.note}; {note}" if len(points) else finding.note)


def _outside(points: pd.DataFrame) -> list[int]:
    """Depths at which a mean lies outside the band around a published point."""
    difference = points["mean"] - points["published"]
    return [int(depth) for depth in points.index[difference.abs() > points["half"]]]


def _in_band(claim: Claim, found: Estimate, band: Sequence[float]) -> Finding:
    low, high = found.interval
    verdict: Verdict = "inconclusive"
    if found.spread.decides:
        if band[0] < low and high < band[1]:
            verdict = "reproduced"
        elif high < band[0] or band[1] < low:
            verdict = "not reproduced"
    note = f"reproduced inside {_interval(band)}{_which(found)}"
    if not found.spread.decides:
        note += "; too few runs for a verdict"
    if verdict == "inconclusive":
        margin = min(abs(found.mean - end) for end in band)
        note += f"; {_would_settle([(found, margin)])}"
    return Finding(
        claim, verdict, _signed(found.mean), _interval(found.interval), _size(found), note
    )


def explained_by_spread(claim: Claim, runs: Runs) -> Finding:
    """Whether the report's point at one depth is a run of the level before it, and ours too."""
    series, depth, before = (claim.options[name] for name in ("series", "depth", "before"))
    own = of_series(runs.finished, series).dropna(subset="accuracy")
    level = own[own["depth"].isin(before)].groupby("depth")["accuracy"].agg(["mean", "count"])
    dip = _dip(claim, runs)
    if dip is None or not runs.comparable:
        return Finding(claim, "not run")
    spread: Spread = pooled(own["accuracy"], own["depth"])
    known = published(claim.options["figure"], series)
    point = known.loc[depth]
    their_dip = float((known["test_accuracy_percent"][before]).mean())
    their_dip -= float(point["test_accuracy_percent"])
    share = float((1 / level["count"]).sum()) / len(level) ** 2
    half = spread.quantile() * spread.s * math.sqrt(1 + share)
    half += float(point["reading_error_percent"])
    mean, reported = float(level["mean"].mean()), float(point["test_accuracy_percent"])
    verdict: Verdict = "inconclusive"
    if spread.decides and dip.mean > 0 and dip.p < ALPHA:
        verdict = "not reproduced"
    elif spread.decides and reported >= mean - half and dip.interval[1] < their_dip:
        verdict = "reproduced"
    return Finding(
        claim,
        verdict,
        _signed(reported - mean),
        f"a run: {mean - half:.2f} to {mean + half:.2f}",
        f"{len(own[own['depth'].isin(before)])} runs before it",
        f"the report's point is {reported:.2f}, our mean before it {mean:.2f}; our own point lies "
        f"{dip.mean:.2f} below (p = {dip.p:.2g}), the report's {their_dip:.2f} below its own",
    )


def only_apart(claim: Claim, runs: Runs) -> Finding:
    """Whether a curve lies outside the band of a published one at one depth, and at no other."""
    series, depth = claim.options["series"], claim.options["depth"]
    known = published(claim.options["figure"], series)
    points = bands(of_series(runs.finished, series), known)
    if depth not in points.index or not runs.comparable:
        return Finding(claim, "not run")
    difference = points["mean"] - points["published"]
    outside = _outside(points)
    verdict: Verdict = "inconclusive"
    if outside == [depth]:
        verdict = "reproduced"
    elif set(outside) - {depth}:
        verdict = "not reproduced"
    each = ", ".join(f"{one}: {_signed(difference[one])}" for one in outside)
    return Finding(
        claim,
        verdict,
        _signed(difference[depth]),
        n=f"{len(points)} depths",
        note=f"outside the band of the published curve, by depth: {each or 'none'}",
    )


def _interval(ends: Sequence[float]) -> str:
    return f"[{_signed(ends[0])}, {_signed(ends[1])}]" if math.isfinite(ends[0]) else "–"


def _signed(value: float) -> str:
    """With two digits, and no sign where these are zero."""
    return f"{value:+.2f}" if round(value, 2) else "0.00"


def _size(estimate: Estimate) -> str:
    counts = sorted({n for _, n in estimate.by_depth.values()})
    seeds = str(counts[0]) if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
    depths = len(estimate.by_depth)
    return f"{depths} depth{'s' * (depths > 1)} × {seeds} seed{'s' * (seeds != '1')}"


def _which(estimate: Estimate) -> str:
    """At which depths, where they are not all of the report's."""
    depths = sorted(estimate.by_depth)
    return f", at {_at(depths)}" if len(depths) < _DEPTHS else ""


def _at(depths: Sequence[int]) -> str:
    return f"depth{'s' * (len(depths) > 1)} {listed(depths)}"
