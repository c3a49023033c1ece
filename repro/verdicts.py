"""A finding for each claim: which test decides it stands in ``claims.toml``."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from repro import accuracy, divergence
from repro.claims import Claim, Finding, Verdict
from repro.statistics import holm
from repro.table import Runs


def decide(runs: Runs, claims: Sequence[Claim], cost: Mapping[int, float]) -> list[Finding]:
    """A finding for each claim.

    Args:
        runs: all runs of a campaign.
        claims: what to decide; Holm's correction counts those among them that contrast methods.
        cost: percent of a training step that BatchNorm takes, by depth; may be empty.
    """
    tested = {
        claim.id: accuracy.comparison(claim, runs) for claim in claims if claim.test in _COMPARED
    }
    compared = {id: one for id, one in tested.items() if one is not None}
    adjusted = dict(zip(compared, holm([one.p for one in compared.values()]), strict=True))
    found = []
    for claim in claims:
        if claim.test in _COMPARED:
            one = compared.get(claim.id)
            finding = (
                Finding(claim, "not run")
                if one is None
                else accuracy.from_comparison(claim, one, adjusted[claim.id], runs)
            )
        elif claim.test == "time":
            finding = _time(claim, cost)
        else:
            finding = _TESTS[claim.test](claim, runs)
        found.append(finding)
    return found


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


# What runs of one epoch decide as well.
FIRST_EPOCH = ("divergence", "occasional", "more", "cure")
_COMPARED = ("contrast", "contrasts", "best", "dip")
_TESTS: dict[str, Callable[[Claim, Runs], Finding]] = {
    "equal": accuracy.equal,
    "curve": accuracy.beside_published,
    "spread": accuracy.explained_by_spread,
    "apart": accuracy.only_apart,
    "divergence": divergence.by_depth,
    "occasional": divergence.occasional,
    "more": divergence.more_often,
    "cure": divergence.cure,
    "stuck": divergence.stuck,
    "none": _none,
}
