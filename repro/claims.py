"""The report's claims, read from ``claims.toml``, and what runs find of them."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from typing import Any, Literal

Verdict = Literal["reproduced", "not reproduced", "inconclusive", "not run"]


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
