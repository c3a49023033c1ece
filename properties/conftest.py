"""Known failures, the outcome of each property, and how to see a failure again."""

from __future__ import annotations

import shlex
from collections.abc import Generator
from pathlib import Path

import pytest
from hypothesis import settings

from properties import outcomes, replay
from properties.implementation import current
from properties.known_failures import FILE, known_failures


def property_of(item: pytest.Item) -> str:
    """File and function of a test, without parameters."""
    return f"{item.path.name}::{getattr(item, 'originalname', item.name)}"


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Mark known failures; an entry that matches no property of a whole run is an error."""
    here = [item for item in items if item.path.parent == Path(__file__).parent]
    entries = [entry for entry in known_failures() if entry.implementation == current().name]
    for entry in entries:
        found = [item for item in here if property_of(item) == entry.property]
        for item in found:
            reason = f"known failure: {entry.reason} ({entry.link})"
            item.add_marker(pytest.mark.xfail(strict=entry.deterministic, reason=reason))
        file = entry.property.split("::")[0]
        is_there = Path(__file__).with_name(file).is_file()
        whole = any(item.path.name == file for item in here) and not (
            config.option.keyword or any("::" in argument for argument in config.args)
        )
        if not found and (whole or not is_there):
            raise pytest.UsageError(
                f"{FILE.name}: no property is called {entry.property}; correct the entry"
            )


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Note of which property this is an outcome."""
    report = yield
    in_suite = item.path.parent == Path(__file__).parent
    if in_suite and report.failed and call.excinfo is not None:
        report.sections.append(("replay", _replay(item, call.excinfo.value)))
    if in_suite and (report.when == "call" or report.skipped or report.failed):
        outcomes.note(report, property_of(item))
    return report


def _replay(item: pytest.Item, error: BaseException) -> str:
    # Of several failures the first is enough to begin with.
    while isinstance(error, BaseExceptionGroup) and error.exceptions:
        error = error.exceptions[0]
    line = replay.command(property_of(item), getattr(error, "__notes__", []))
    if line is None:
        profile = f"HYPOTHESIS_PROFILE={settings.get_current_profile_name()} "
        line = f"{replay.implementation_choice()}{profile}pytest {shlex.quote(item.nodeid)}"
    return f"{line}\n"
