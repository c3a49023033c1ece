"""Properties that an implementation is known not to have: data, in ``known_failures.toml``."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from pathlib import Path

FILE = Path(__file__).with_suffix(".toml")


@dataclass(frozen=True)
class KnownFailure:
    """A property that an implementation is known not to have.

    Attributes:
        implementation: its name.
        property: file and function, ``test_edges.py::test_dead_units_are_left_alone``.
        reason: what it does instead.
        link: where that can be read.
        deterministic: whether the property fails in every run, so that a pass is an error.
    """

    implementation: str
    property: str
    reason: str
    link: str
    deterministic: bool = True


def known_failures() -> list[KnownFailure]:
    """All entries of the file, for whatever implementation."""
    return [KnownFailure(**entry) for entry in tomllib.loads(FILE.read_text())["failure"]]
