"""What outcomes decide: how many runs diverge, or end at chance.

Divergence is reproduced when all of at least three seeds agree.
"""

from __future__ import annotations

import pandas as pd
from scipy import stats

from repro.claims import Claim, Finding, Verdict
from repro.statistics import ALPHA
from repro.table import Runs, listed, of_series

_AGREEING_SEEDS = 3
# Were one run in twenty to fail, 59 without a failure would be seen once in twenty times.
_RUNS_WITHOUT = 59


def by_depth(claim: Claim, runs: Runs) -> Finding:
    """Whether all runs diverge in their first epoch at some depths, and none at others."""
    options = claim.options
    own = of_series(runs.first_epochs, options["series"])
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
        note += f"; fewer than {_AGREEING_SEEDS} seeds at {listed(short)}"
    short_runs = int((own["epochs"] < runs.epochs).sum())
    if short_runs:
        note += f"; {short_runs} of the runs stop after fewer epochs than {runs.epochs}"
    return Finding(claim, verdict, n=f"{len(own)} runs", note=note)


def occasional(claim: Claim, runs: Runs) -> Finding:
    """Whether some runs diverge, and not all."""
    own = of_series(runs.first_epochs, claim.options["series"])
    own = own[own["depth"].isin(claim.options["depths"])]
    if own.empty:
        return Finding(claim, "not run")
    counts = _lost(own)
    diverged = int(counts["sum"].sum())
    verdict: Verdict = "inconclusive"
    if 0 < diverged < len(own):
        verdict = "reproduced"
    elif diverged >= _AGREEING_SEEDS or (not diverged and len(own) >= _RUNS_WITHOUT):
        # Always, or never.
        verdict = "not reproduced"
    note = f"diverged, by depth: {_by_depth(counts)}"
    if verdict == "inconclusive" and not diverged:
        note += f"; {_RUNS_WITHOUT} without one would refute it"
    return Finding(claim, verdict, n=f"{len(own)} runs", note=note)


def more_often(claim: Claim, runs: Runs) -> Finding:
    """Fisher's exact test on how many runs diverge, at the same depths."""
    rows = runs.first_epochs
    rows = rows[rows["depth"].isin(claim.options["depths"])]
    sides = [_lost(of_series(rows, claim.options[name])) for name in ("above", "below")]
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


def cure(claim: Claim, runs: Runs) -> Finding:
    """Whether runs that diverge end finite where what is blamed stays as it is.

    Most of them have to, and, where some of the plain runs are finite, fewer have to diverge from
    the same initial weights: another seed would end finite as well.
    """
    rows = runs.first_epochs.set_index(["depth", "seed"])
    plain = rows[rows["series"] == claim.options["series"]]
    own = plain[plain["outcome"] == "diverged"]
    others = [rows[rows["series"] == series] for series in claim.options["refuted_by"]]
    if own.empty or all(one.empty for one in others):
        return Finding(claim, "not run")
    # Of each depth at which some diverge, all.
    plain = plain[plain.index.isin(set(own.index.get_level_values("depth")), level="depth")]
    notes, refuted, count = [], True, 0
    for series, one in zip(claim.options["refuted_by"], others, strict=True):
        pairs = plain[["outcome"]].join(one["outcome"].rename("changed"), how="inner")
        there = pairs[pairs["outcome"] == "diverged"]
        finite = int((there["changed"] == "finite").sum())
        least = 0.0
        if len(there):
            share = stats.binomtest(finite, len(there)).proportion_ci(1 - ALPHA, "exact")
            least = float(share.low)
        elsewhere = pairs[pairs["outcome"] == "finite"]
        worse = int((elsewhere["changed"] == "diverged").sum())
        p = float(stats.binomtest(finite, finite + worse).pvalue) if finite + worse else 1.0
        refuted &= least > 0.5 and p < ALPHA and len(pairs) == len(plain)
        count += len(there)
        note = f"{series} {finite} of {len(there)} (at least {100 * least:.0f} %)"
        if len(elsewhere):
            note += f", and {worse} of {len(elsewhere)} others diverge (p = {p:.2g})"
        if len(pairs) < len(plain):
            note += f", not run at {len(plain) - len(pairs)} seeds"
        notes.append(note)
    return Finding(
        claim,
        "not reproduced" if refuted else "inconclusive",
        n=f"{count} runs",
        note=f"finite at depths and seeds where {claim.options['series']} diverges: "
        + "; ".join(notes),
    )


def stuck(claim: Claim, runs: Runs) -> Finding:
    """Whether runs end at chance."""
    table = of_series(runs.finished, claim.options["series"]).dropna(subset="accuracy")
    if table.empty:
        return Finding(claim, "not run")
    own, most = table["accuracy"], claim.options["most"]
    stuck_at = (own <= most).groupby(table["depth"]).agg(["sum", "count"])
    many = stuck_at[stuck_at["count"] >= _AGREEING_SEEDS]
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
        + _by_depth(stuck_at)
        + f"; a verdict takes {_AGREEING_SEEDS} runs at one depth" * (verdict == "inconclusive"),
    )


def _lost(rows: pd.DataFrame) -> pd.DataFrame:
    """How many runs diverged, ``sum``, and how many there are, ``count``, by depth."""
    return (rows["outcome"] == "diverged").groupby(rows["depth"]).agg(["sum", "count"])


def _by_depth(counts: pd.DataFrame) -> str:
    return ", ".join(f"{depth}: {some}/{all_}" for depth, some, all_ in counts.itertuples())
