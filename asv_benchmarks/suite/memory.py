"""What a cycle needs beside the weights, and what importing the package takes."""

from __future__ import annotations

import subprocess
import sys
from typing import ClassVar

import torch

from .common import DEVICES, OnDevice, cycle
from .networks import CONVOLUTIONAL, DEEP, build


class Memory(OnDevice):
    """Peak of a cycle ÷ size of the weights."""

    params: ClassVar[list[list[object]]] = [[*DEEP, *CONVOLUTIONAL], list(DEVICES)]

    def track_peak_over_weights(self, net: str, device: str) -> float:
        """The first cycle's; later ones use the same buffers again."""
        model = build(net, device)
        size = sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())
        step = cycle(net, device)
        if device == "cuda":
            # Libraries take memory of their own in the first step of a process.
            cycle(net, device)()
            before = torch.cuda.memory_allocated()
            torch.cuda.reset_peak_memory_stats()
            step()
            return (torch.cuda.max_memory_allocated() - before) / size
        activities = [torch.profiler.ProfilerActivity.CPU]
        with torch.profiler.profile(activities=activities, profile_memory=True) as profile:
            step()
        held = peak = 0
        events = (one for one in profile.profiler.kineto_results.events())
        for event in sorted(events, key=lambda one: one.start_ns()):
            if event.name() == "[memory]":
                held += event.nbytes()
                peak = max(peak, held)
        return peak / size

    track_peak_over_weights.unit = "weights"  # type: ignore[attr-defined]
    # asv drops results of other code: on a CPU, where all of them are from, this measures the same.
    track_peak_over_weights.version = (  # type: ignore[attr-defined]
        "287f02fce6551c28eb09b5eebc386ff2e2169e0077d53e6fd7231c27333a2956"
    )


class Import:
    """``import enorm`` beside ``import torch``."""

    def track_import_over_torch(self) -> float:
        """Seconds inside enorm's own modules ÷ torch's, by Python's own account."""
        done = subprocess.run(
            [sys.executable, "-X", "importtime", "-c", "import torch, enorm"],
            capture_output=True,
            text=True,
            check=True,
        )
        total = {"torch": 0.0, "enorm": 0.0}
        for line in done.stderr.splitlines():
            *_, cumulative, name = line.removeprefix("import time:").split("|")
            if name.strip() in total:
                total[name.strip()] = float(cumulative)
        return total["enorm"] / total["torch"]

    track_import_over_torch.unit = "imports of torch"  # type: ignore[attr-defined]
