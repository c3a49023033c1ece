"""Options of pytest and profiles of Hypothesis for every suite of the project."""

from __future__ import annotations

import os

import pytest
import torch
from hypothesis import HealthCheck, Phase, settings

import enorm

# Time limits make a suite fail on a busy machine, not on a wrong program.
_COMMON = settings(
    deadline=None,
    print_blob=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
settings.register_profile("dev", _COMMON, max_examples=20)
settings.register_profile("ci", _COMMON, max_examples=60, derandomize=True)
settings.register_profile("nightly", _COMMON, max_examples=2000)
settings.register_profile(
    "debug", _COMMON, max_examples=20, phases=[Phase.explicit, Phase.reuse, Phase.generate]
)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci" if "CI" in os.environ else "dev"))


def pytest_report_header(config: pytest.Config) -> str:
    """What is under test and how it is explored."""
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"
    profile = (
        config.getoption("--hypothesis-profile", default=None)
        or settings.get_current_profile_name()
    )
    return (
        f"implementation: enorm {enorm.__version__}, torch {torch.__version__}, device: {device}, "
        f"threads: {torch.get_num_threads()}, profile: {profile}"
    )
