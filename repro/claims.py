"""The report's claims: read from ``claims.toml``, decided from runs.

Tests and bands stand there, the statistics in :mod:`repro.statistics`. A contrast is reproduced
with the right sign and a Holm-corrected p below 0.05, not reproduced with the wrong sign and the
same; a curve by where its interval lies; divergence when all of at least three seeds agree.
"""

from __future__ import annotations

import math
import tomllib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib import resources
from typing import Any, Literal

import pandas as pd
from scipy import stats

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
from repro.table import Runs, bands, published

Verdict = Literal["reproduced", "not reproduced", "inconclusive", "not run"]

_QUANTIFIERS = {"almost every": 9, "most": 6, "always": 10}
_DEPTHS = 10
_AGREEING_SEEDS = 3
# Were one run in twenty to fail, 59 without a failure would be seen once in twenty times.
_RUNS_WITHOUT = 59


@dataclass(frozen=True)
class Claim:
    """An entry of ``claims.toml``.

    Attributes:
        expected: the verdict that the committed evidence gives.
        options: what the test needs.
        reason: where that verdict differs from the report, the best supported reason.
        remark: what to know of the test, whatever its verdict.
    """

    id: str
    text: str
    section: str
    test: str
    expected: Verdict
    options: Mapping[str, Any]
    reason: str = ""
    remark: str = ""

    @property
    def beyond(self) -> bool:
        """Whether it is a question of ours, and no claim of the report."""
        return self.section.startswith("beyond")


@dataclass(frozen=True)
class Finding:
    """What the runs say to a claim.

    Attributes:
        claim: the claim.
        verdict: what is decided.
        effect: the measured size, in points of test accuracy unless it says otherwise; or empty.
        interval: its 95 % interval, or empty.
        n: on how much it rests.
        note: counts, and what would settle it.
    """

    claim: Claim
    verdict: Verdict
    effect: str = ""
    interval: str = ""
    n: str = ""
    note: str = ""

    @property
    def reason(self) -> str:
        """Why it is so, if the verdict is the one that the claim's reason explains."""
        return self.claim.reason if self.verdict == self.claim.expected else ""


def load() -> list[Claim]:
    """All claims, in the table's order."""
    entries = tomllib.loads((resources.files("repro") / "claims.toml").read_text())["claim"]
    own = ("id", "text", "section", "test", "expected", "reason", "remark")
    return [
        Claim(
            **{name: entry[name] for name in own if name in entry},
            options={name: value for name, value in entry.items() if name not in own},
        )
        for entry in entries
    ]


def decide(runs: Runs, claims: Sequence[Claim], cost: Mapping[int, float]) -> list[Finding]:
    """A finding for each claim.

    Args:
        runs: all runs of a campaign.
        claims: what to decide; Holm's correction counts those among them that contrast methods.
        cost: percent of a training step that BatchNorm takes, by depth; may be empty.
    """
    tested = {claim.id: _comparison(claim, runs) for claim in claims if claim.test in _COMPARED}
    compared = {id: one for id, one in tested.items() if one is not None}
    adjusted = dict(zip(compared, holm([one.p for one in compared.values()]), strict=True))
    found = []
    for claim in claims:
        if claim.test in _COMPARED:
            one = compared.get(claim.id)
            finding = (
                Finding(claim, "not run")
                if one is None
                else _from_comparison(claim, one, adjusted[claim.id], runs)
            )
        elif claim.test == "time":
            finding = _time(claim, cost)
        else:
            finding = _TESTS[claim.test](claim, runs)
        found.append(finding)
    return found


@dataclass(frozen=True)
class _Comparison:
    """Contrasts that a claim says to be positive, and the p-value of all of them at once."""

    estimates: tuple[Estimate, ...]
    pairs: tuple[tuple[str, str], ...]

    @property
    def right(self) -> bool:
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


def _comparison(claim: Claim, runs: Runs) -> _Comparison | None:
    options = claim.options
    if claim.test == "contrast":
        pairs = [(options["above"], options["below"])]
    elif claim.test == "best":
        pairs = [(options["series"], other) for other in options["others"]]
    elif claim.test == "contrasts":
        pairs = [(above, below) for above, below in options["pairs"]]
    else:
        dip = _dip(claim, runs)
        return None if dip is None else _Comparison((dip,), ((options["series"], "before"),))
    estimates = [contrast(runs, above, below) for above, below in pairs]
    if any(one is None for one in estimates):
        return None
    return _Comparison(tuple(one for one in estimates if one is not None), tuple(pairs))


def _dip(claim: Claim, runs: Runs) -> Estimate | None:
    """How far accuracy at one depth lies below the mean of others; positive where it does.

    Of the seeds that all these depths have; the spread is that of a single run of the series.
    """
    series, depth = claim.options["series"], claim.options["depth"]
    own = _of(runs.finished, series)
    part = own[own["depth"].isin([depth, *claim.options["before"]])].dropna(subset="accuracy")
    seeds = [set(one) for _, one in part.groupby("depth")["seed"]]
    if len(seeds) < 1 + len(claim.options["before"]):
        return None
    part = part[part["seed"].isin(set.intersection(*seeds))]
    there = part[part["depth"] == depth]["accuracy"]
    before = part[part["depth"] != depth]
    if there.empty or before.empty:
        return None
    means = before.groupby("depth")["accuracy"].agg(["mean", "count"])
    spread = pooled(own["accuracy"], own["depth"])
    share = 1 / len(there) + float((1 / means["count"]).sum()) / len(means) ** 2
    mean = float(means["mean"].mean() - there.mean())
    return Estimate(
        mean,
        spread.s * math.sqrt(share),
        spread,
        dict.fromkeys([*claim.options["before"], depth], (mean, len(there))),
        share=1 + 1 / len(means),
        cells=1 + len(means),
    )


def _from_comparison(claim: Claim, one: _Comparison, p: float, runs: Runs) -> Finding:
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
        notes.append(f"against depths {_listed(claim.options['before'])}, at the seeds of all")
    else:
        notes[-1] += _which(one.estimates[0])
    if verdict == "inconclusive" and significant:
        notes.append(_exceptions(one))
    elif verdict == "inconclusive":
        # What Holm's correction leaves to this claim among the others, as they are now.
        tails = ALPHA * min(1.0, one.p / p) if p else ALPHA
        notes.append(_would_settle([(each, abs(each.mean)) for each in one.estimates], tails))
    if len(one.pairs) == 1 and claim.test == "contrast":
        pairs = paired(runs, *one.pairs[0])
        # A seed that misses depths has a mean of its own.
        whole = pairs.groupby("seed")["depth"].transform("nunique") == pairs["depth"].nunique()
        shown = bootstrap(pairs["difference"][whole], pairs["seed"][whole])
        if shown is not None:
            notes.append(f"bootstrap over seeds {_interval(shown)}")
    return Finding(
        claim,
        verdict,
        ", ".join(_signed(estimate.mean) for estimate in one.estimates),
        ", ".join(_interval(estimate.interval) for estimate in one.estimates),
        _size(one.estimates[0]),
        "; ".join(notes),
    )


def _counts(one: _Comparison) -> tuple[int, int, int]:
    """Depths where every contrast is positive, where one is significantly negative, and all."""
    depths = set.intersection(*(set(estimate.by_depth) for estimate in one.estimates))
    positive = sum(all(e.by_depth[d][0] > 0 for e in one.estimates) for d in depths)
    wrong = 0
    for estimate in one.estimates:
        at = [
            Estimate(mean, estimate.spread.s / math.sqrt(n), estimate.spread, {depth: (mean, n)})
            for depth, (mean, n) in estimate.by_depth.items()
        ]
        adjusted = holm([single.p for single in at])
        negative = [s for s, p in zip(at, adjusted, strict=True) if s.mean < 0 and p < ALPHA]
        wrong = max(wrong, len(negative))
    return positive, wrong, len(depths)


def _exceptions(one: _Comparison) -> str:
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
    listed = ", ".join(
        f"{n} at depth {depth}" if n <= MOST_SEEDS else f"more than {MOST_SEEDS} at depth {depth}"
        for depth, n in sorted(needed.items())
    )
    return f"seeds that would show the exceptions: {listed}"


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
        if any(estimate.fixed for estimate, _ in estimates):
            return "no number of seeds here would settle this effect: too few runs were published"
        return f"more than {MOST_SEEDS} seeds would settle this effect"
    return f"{max(known)} seeds would settle this effect"


def _equal(claim: Claim, runs: Runs) -> Finding:
    found = contrast(runs, claim.options["one"], claim.options["other"])
    if found is None:
        return Finding(claim, "not run")
    return _in_band(claim, found, claim.options["band"])


def curve(runs: Runs, series: str, figure: int) -> Estimate | None:
    """Mean over depths of our accuracy minus a published one, with that one's own uncertainty."""
    own = _of(runs.finished, series).dropna(subset="accuracy")
    known = published(figure, series).dropna(subset="test_accuracy_percent")
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


def _curve(claim: Claim, runs: Runs) -> Finding:
    series, figure = claim.options["series"], claim.options["figure"]
    found = curve(runs, series, figure)
    if found is None:
        return Finding(claim, "not run")
    finding = _in_band(claim, found, claim.options.get("band", [-1.0, 1.0]))
    points = bands(_of(runs.finished, series), published(figure, series))
    outside = points[(points["mean"] - points["published"]).abs() > points["half"]]
    note = f"{len(outside)} of {len(points)} points outside the band of a published curve"
    if len(outside):
        note += f" (depth {_listed(list(outside.index))})"
    return replace(finding, note=f"{finding.note}; {note}" if len(points) else finding.note)


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


def _spread(claim: Claim, runs: Runs) -> Finding:
    """Whether the report's point at one depth is a run of the level before it, and ours too."""
    series, depth, before = (claim.options[name] for name in ("series", "depth", "before"))
    own = _of(runs.finished, series).dropna(subset="accuracy")
    level = own[own["depth"].isin(before)].groupby("depth")["accuracy"].agg(["mean", "count"])
    dip = _dip(claim, runs)
    if dip is None or not runs.comparable:
        return Finding(claim, "not run")
    spread: Spread = pooled(own["accuracy"], own["depth"])
    point = published(claim.options["figure"], series).loc[depth]
    share = float((1 / level["count"]).sum()) / len(level) ** 2
    half = spread.quantile() * spread.s * math.sqrt(1 + share)
    half += float(point["reading_error_percent"])
    mean, reported = float(level["mean"].mean()), float(point["test_accuracy_percent"])
    verdict: Verdict = "inconclusive"
    if spread.decides and dip.mean > 0 and dip.p < ALPHA:
        verdict = "not reproduced"
    elif spread.decides and reported >= mean - half:
        verdict = "reproduced"
    return Finding(
        claim,
        verdict,
        _signed(reported - mean),
        f"a run: {mean - half:.2f} to {mean + half:.2f}",
        f"{len(own[own['depth'].isin(before)])} runs before it",
        f"the report's point is {reported:.2f}, our mean before it {mean:.2f}; our own point lies "
        f"{dip.mean:.2f} below (p = {dip.p:.2g})",
    )


def _divergence(claim: Claim, runs: Runs) -> Finding:
    options = claim.options
    own = _of(runs.first_epochs, options["series"])
    own = own[own["depth"].isin(options["diverge"] + options["finite"])]
    if own.empty:
        return Finding(claim, "not run")
    short, against = [], []
    first: list[str] = []
    ever: list[str] = []
    for depth in sorted(options["diverge"] + options["finite"]):
        there = own[own["depth"] == depth]
        wanted = depth in options["diverge"]
        at_once = there["diverged_epoch"] == 0
        diverged = int((at_once if wanted else there["outcome"] == "diverged").sum())
        if len(there) < _AGREEING_SEEDS:
            short.append(depth)
        elif diverged != len(there) * wanted:
            against.append(depth)
        if len(there):
            (first if wanted else ever).append(f"{depth}: {diverged}/{len(there)}")
    verdict: Verdict = "reproduced"
    if against:
        verdict = "not reproduced"
    elif short:
        verdict = "inconclusive"
    parts = {"diverged in the first epoch": first, "diverged at any time": ever}
    note = "; ".join(
        f"{what}, by depth: {', '.join(counts)}" for what, counts in parts.items() if counts
    )
    if short:
        note += f"; fewer than {_AGREEING_SEEDS} seeds at {_listed(short)}"
    short_runs = int((own["epochs"] < runs.epochs).sum())
    if short_runs:
        note += f"; {short_runs} of the runs stop after fewer epochs than {runs.epochs}"
    return Finding(claim, verdict, n=f"{len(own)} runs", note=note)


def _occasional(claim: Claim, runs: Runs) -> Finding:
    own = _of(runs.first_epochs, claim.options["series"])
    own = own[own["depth"].isin(claim.options["depths"])]
    if own.empty:
        return Finding(claim, "not run")
    diverged = int((own["outcome"] == "diverged").sum())
    verdict: Verdict = "inconclusive"
    if 0 < diverged < len(own):
        verdict = "reproduced"
    elif diverged >= _AGREEING_SEEDS or (not diverged and len(own) >= _RUNS_WITHOUT):
        # Always, or never.
        verdict = "not reproduced"
    note = f"diverged, by depth: {_by_depth(_lost(own))}"
    if verdict == "inconclusive" and not diverged:
        note += f"; {_RUNS_WITHOUT} without one would refute it"
    return Finding(claim, verdict, n=f"{len(own)} runs", note=note)


def _more(claim: Claim, runs: Runs) -> Finding:
    """Fisher's exact test on how many runs diverge, at the same depths."""
    rows = runs.first_epochs
    rows = rows[rows["depth"].isin(claim.options["depths"])]
    sides = [_lost(_of(rows, claim.options[name])) for name in ("above", "below")]
    (lost, all_), (other, others) = ((int(n) for n in side.sum()) for side in sides)
    if not (all_ and others):
        return Finding(claim, "not run")
    p = float(stats.fisher_exact([[lost, all_ - lost], [other, others - other]]).pvalue)
    shares = (lost / all_, other / others)
    verdict: Verdict = "inconclusive"
    if p < ALPHA:
        verdict = "reproduced" if shares[0] > shares[1] else "not reproduced"
    return Finding(
        claim,
        verdict,
        f"{100 * shares[0]:.0f} % and {100 * shares[1]:.0f} %",
        n=f"{all_ + others} runs",
        note=f"diverged: {lost} of {all_} ({_by_depth(sides[0])}) and {other} of {others} "
        f"({_by_depth(sides[1])}); p = {p:.2g} (Fisher)",
    )


def _cure(claim: Claim, runs: Runs) -> Finding:
    rows = runs.first_epochs.set_index(["depth", "seed"])
    own = rows[(rows["series"] == claim.options["series"]) & (rows["outcome"] == "diverged")]
    others = [rows[rows["series"] == series] for series in claim.options["refuted_by"]]
    if own.empty or all(one.empty for one in others):
        return Finding(claim, "not run")
    notes, refuted, count = [], True, 0
    for series, one in zip(claim.options["refuted_by"], others, strict=True):
        one = one[one.index.isin(own.index)]
        finite = int((one["outcome"] == "finite").sum())
        least = 0.0
        if len(one):
            share = stats.binomtest(finite, len(one)).proportion_ci(1 - ALPHA, "exact")
            least = float(share.low)
        refuted &= least > 0.5
        count += len(one)
        notes.append(f"{series} {finite} of {len(one)} (at least {100 * least:.0f} %)")
    return Finding(
        claim,
        "not reproduced" if refuted else "inconclusive",
        n=f"{count} runs",
        note=f"finite at depths and seeds where {claim.options['series']} diverges: "
        + ", ".join(notes),
    )


def _stuck(claim: Claim, runs: Runs) -> Finding:
    table = _of(runs.finished, claim.options["series"]).dropna(subset="accuracy")
    if table.empty:
        return Finding(claim, "not run")
    own, most = table["accuracy"], claim.options["most"]
    by_depth = (own <= most).groupby(table["depth"]).agg(["sum", "count"])
    many = by_depth[by_depth["count"] >= _AGREEING_SEEDS]
    verdict: Verdict = "inconclusive"
    if (many["sum"] == 0).any():
        # That it never learns is refuted by one depth at which it always does.
        verdict = "not reproduced"
    elif len(many) and (own <= most).all():
        verdict = "reproduced"
    return Finding(
        claim,
        verdict,
        f"{own.mean():.1f} %",
        f"{own.min():.1f} to {own.max():.1f} %",
        f"{len(own)} runs",
        f"end at or below {most:.0f} %, by depth: "
        + _by_depth(by_depth)
        + f"; a verdict takes {_AGREEING_SEEDS} runs at one depth" * (verdict == "inconclusive"),
    )


def _time(claim: Claim, cost: Mapping[int, float]) -> Finding:
    if not cost:
        return Finding(claim, "not run")
    low, high = claim.options["band"]
    inside = [low <= share <= high for share in cost.values()]
    verdict: Verdict = "inconclusive"
    if all(inside):
        verdict = "reproduced"
    elif not any(inside):
        verdict = "not reproduced"
    shares = ", ".join(f"{depth}: {share:.0f} %" for depth, share in cost.items())
    mean = sum(cost.values()) / len(cost)
    return Finding(claim, verdict, f"{mean:.0f} %", "", f"{len(cost)} depths", f"by depth {shares}")


def _none(claim: Claim, runs: Runs) -> Finding:
    return Finding(claim, "not run")


def _lost(rows: pd.DataFrame) -> pd.DataFrame:
    """How many runs diverged, ``sum``, and how many there are, ``count``, by depth."""
    return (rows["outcome"] == "diverged").groupby(rows["depth"]).agg(["sum", "count"])


def _by_depth(counts: pd.DataFrame) -> str:
    return ", ".join(f"{depth}: {some}/{all_}" for depth, some, all_ in counts.itertuples())


def _of(rows: pd.DataFrame, series: str) -> pd.DataFrame:
    return rows[rows["series"] == series]


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
    if len(depths) == _DEPTHS:
        return ""
    return f", at depth{'s' * (len(depths) > 1)} {_listed(depths)}"


def _listed(depths: Sequence[int]) -> str:
    return ", ".join(map(str, depths)) or "none"


_COMPARED = ("contrast", "contrasts", "best", "dip")
_TESTS: dict[str, Callable[[Claim, Runs], Finding]] = {
    "equal": _equal,
    "curve": _curve,
    "spread": _spread,
    "divergence": _divergence,
    "occasional": _occasional,
    "more": _more,
    "cure": _cure,
    "stuck": _stuck,
    "none": _none,
}
