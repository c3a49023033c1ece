"""What the measured history is not to lose again."""

from __future__ import annotations

import subprocess
import sys


def test_importing_enorm_loads_nothing_that_few_need() -> None:
    """These take as long to import as half of torch."""
    code = "import sys, enorm; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = set(done.stdout.split())
    assert "enorm._sharded" in loaded
    heavy = ("torch.distributed.tensor", "torch.distributed.fsdp", "torch._dynamo", "torchvision")
    assert not loaded & set(heavy)
