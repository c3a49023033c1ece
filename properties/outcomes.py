"""The outcome of each property: counted at the end, written where ``--enorm-report`` says.

Outcomes travel with pytest's own reports of tests, so that they arrive from other processes too.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import pytest

from properties.implementation import current

_OUTCOME_OF = "outcome of "
# From the least to the worst.
_ORDER = ("not applicable", "passed", "known failure", "failed")


def note(report: pytest.TestReport, name: str) -> None:
    """Let ``report`` say what became of the property of that name."""
    outcome: str = report.outcome
    if report.skipped:
        outcome = "known failure" if hasattr(report, "wasxfail") else "not applicable"
    report.user_properties.append((_OUTCOME_OF + name, outcome))


class Outcomes:
    """Plugin of pytest: the worst outcome over a property's parameters."""

    def __init__(self, report: Path | None) -> None:
        """``report`` is written at the end, unless nothing was to run."""
        self.report = report
        self.found: dict[str, str] = {}

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """One more outcome."""
        for key, value in report.user_properties:
            if key.startswith(_OUTCOME_OF):
                name, outcome = key.removeprefix(_OUTCOME_OF), str(value)
                self.found[name] = max(outcome, self.found.get(name, outcome), key=_ORDER.index)

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        """How many properties apply."""
        outcomes = list(self.found.values())
        if outcomes:
            text = ", ".join(f"{outcomes.count(name)} {name}" for name in sorted(set(outcomes)))
            terminalreporter.write_line(f"{current().name}: {len(outcomes)} properties, {text}")

    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        """The report, where one was asked for."""
        if self.report is None or session.config.option.collectonly:
            return
        content = {
            "implementation": current().name,
            "version": current().version,
            "capabilities": asdict(current().capabilities),
            "outcomes": self.found,
        }
        self.report.write_text(json.dumps(content, indent=1) + "\n")
