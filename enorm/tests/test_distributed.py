"""Two real processes over gloo, started by ``torchrun``."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch.distributed as dist
from torch import nn

import enorm
from enorm.tests.two_processes import TASKS

# Wider and longer where time is no matter.
SIZE = ["--width", "64", "--steps", "50"] if os.environ.get("ENORM_NIGHTLY") else []


@pytest.mark.skipif(not dist.is_available(), reason="this torch has no torch.distributed")
@pytest.mark.parametrize("task", TASKS)
def test_two_processes(task: str) -> None:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += ["--nproc-per-node=2", "-m", "enorm.tests.two_processes", task, *SIZE]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_partitioned_parameters_are_refused_by_name() -> None:
    """DeepSpeed marks each parameter that ZeRO-3 took away."""
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    for parameter in model.parameters():
        parameter.ds_id = 0  # type: ignore[attr-defined]
    with pytest.raises(enorm.UnsupportedModel, match="partitioned by DeepSpeed ZeRO-3"):
        enorm.trace(model)
