"""What the measured history is not to lose again."""

from __future__ import annotations

import subprocess
import sys

from asv_benchmarks.suite.common import excess


def test_importing_enorm_loads_nothing_that_few_need() -> None:
    """These take as long to import as half of torch."""
    code = "import sys, enorm; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = set(done.stdout.split())
    assert "enorm._sharded" in loaded
    heavy = ("torch.distributed.tensor", "torch.distributed.fsdp", "torch._dynamo", "torchvision")
    assert not loaded & set(heavy)


def test_what_a_call_adds_is_seen_through_a_drift() -> None:
    """Half a second in two rounds of three, where medians differ by −1.5."""
    assert excess({"bn": [1.5, 9.5, 2.5], "none": [1.0, 9.0, 4.0]}, "bn", "none") == 0.5
