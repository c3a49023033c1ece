"""One ENorm cycle on the report's network."""

from __future__ import annotations

import enorm
from asv_benchmarks.common import OnDevice, build, interleaved, memory_pass


class Cycle(OnDevice):
    """A cycle of Algorithm 1, c = 1.2, as a training loop calls it."""

    def prepare(self, depth: int, device: str, *_: object) -> None:
        self.model = build(depth, device)
        self.stepper = enorm.ENorm(self.model, c=1.2)
        self.run(self.stepper.step)

    def time_cycle(self, depth: int, device: str) -> None:
        self.run(self.stepper.step)

    def track_cycle_over_memory_pass(self, depth: int, device: str) -> float:
        """Cycle ÷ (one read pass + one read-write pass over the same weights)."""
        calls = {"cycle": self.stepper.step, "pass": memory_pass(self.model)}
        seconds = interleaved(calls, device)
        return seconds["cycle"] / seconds["pass"]

    track_cycle_over_memory_pass.unit = "memory passes"  # type: ignore[attr-defined]
