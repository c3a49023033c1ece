"""Options of pytest and profiles of Hypothesis for every suite of the project."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, Phase, settings

# Time limits make a suite fail on a busy machine, not on a wrong program.
_COMMON = settings(
    deadline=None,
    print_blob=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
_CI = settings(_COMMON, max_examples=60, derandomize=True)
# The same examples as ci, for planted bugs: that one fails is all there is to know.
_UNSHRUNK = settings(_CI, phases=[Phase.explicit, Phase.generate])
PROFILES = {
    "dev": settings(_COMMON, max_examples=20),
    "ci": _CI,
    "ci-unshrunk": _UNSHRUNK,
    # For thousands of small changes to the source: a few examples each, the same ones every time.
    "mutation": settings(_UNSHRUNK, max_examples=4, database=None),
    # Fresh examples in the number of ci, for showing that no seed fails.
    "ci-seeded": settings(_COMMON, max_examples=60, database=None),
    "nightly": settings(_COMMON, max_examples=2000),
    "debug": settings(
        _COMMON, max_examples=20, phases=[Phase.explicit, Phase.reuse, Phase.generate]
    ),
}
for _name, _profile in PROFILES.items():
    settings.register_profile(_name, _profile)
_CHOSEN = os.environ.get("HYPOTHESIS_PROFILE") or ("ci" if "CI" in os.environ else "dev")
if _CHOSEN in PROFILES:
    settings.load_profile(_CHOSEN)


def pytest_addoption(parser: pytest.Parser) -> None:
    """Which implementation the property suite runs against."""
    group = parser.getgroup("enorm")
    group.addoption(
        "--enorm-impl",
        metavar="MODULE:ATTRIBUTE",
        help="a function load(path) that returns an implementation of ENorm as "
        "properties.implementation describes it (environment: ENORM_IMPL; default: ours)",
    )
    group.addoption(
        "--enorm-impl-path",
        metavar="PATH",
        help="what load is called with, such as a checkout (environment: ENORM_IMPL_PATH)",
    )
    group.addoption(
        "--enorm-report", metavar="FILE", help="write the outcome of each property as JSON"
    )


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config: pytest.Config) -> None:
    """Options win over the environment, which the suite reads while it is imported."""
    profile = config.getoption("--hypothesis-profile", default=None) or _CHOSEN
    if profile not in PROFILES:
        raise pytest.UsageError(
            f"no Hypothesis profile {profile!r}; there are {', '.join(PROFILES)}"
        )
    for option in ("enorm_impl", "enorm_impl_path"):
        if (value := config.getoption(option)) is not None:
            os.environ[option.upper()] = value
    if config.getoption("enorm_impl") == "":
        raise pytest.UsageError("--enorm-impl is empty: give MODULE:ATTRIBUTE")
    file = None
    if (report := config.getoption("enorm_report")) is not None:
        file = Path(report)
        if not report or file.is_dir() or not file.parent.is_dir():
            raise pytest.UsageError(f"--enorm-report={report} is no file in a folder that is there")
    # What cannot be tested is told before anything is collected.
    from properties.implementation import current
    from properties.outcomes import Outcomes

    current()
    # Processes that pytest-xdist starts send their outcomes to the one that started them.
    if not hasattr(config, "workerinput"):
        config.pluginmanager.register(Outcomes(file), "enorm-outcomes")


def pytest_report_header(config: pytest.Config) -> str:
    """What is under test and how it is explored."""
    from properties.implementation import current

    under_test = current()
    profile = (
        config.getoption("--hypothesis-profile", default=None)
        or settings.get_current_profile_name()
    )
    return (
        f"implementation: {under_test.name} {under_test.version}, "
        f"dtypes: {', '.join(under_test.capabilities.dtypes)}\n"
        f"torch {torch.__version__}, device: cpu, threads: {torch.get_num_threads()}, "
        f"profile: {profile}"
    )
