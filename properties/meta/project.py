"""A copy of the project to spoil, and the suite run in it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def copy_to(folder: Path) -> None:
    """What the suite needs, into ``folder``."""
    for name in ("enorm", "properties"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("conftest.py", "pyproject.toml"):
        shutil.copy(ROOT / name, folder / name)


def run_suite(
    folder: Path, *arguments: str, profile: str = "ci-unshrunk"
) -> subprocess.CompletedProcess[str]:
    """``pytest`` in that copy, on one thread, against our implementation unless told otherwise."""
    return subprocess.run(
        [sys.executable, "-m", "pytest", "-q", *arguments],
        cwd=folder,
        env={
            **os.environ,
            "HYPOTHESIS_PROFILE": profile,
            "ENORM_IMPL": "",
            "ENORM_IMPL_PATH": "",
            "OMP_NUM_THREADS": "1",
        },
        capture_output=True,
        text=True,
    )
