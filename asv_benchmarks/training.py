"""A training step with nothing, BatchNorm, ENorm and both, batch 256."""

from __future__ import annotations

from typing import ClassVar

import enorm
from asv_benchmarks.common import METHODS, OnDevice, build, interleaved, training_step


class Step(OnDevice):
    """Forward, backward, SGD and, with ENorm, a cycle."""

    params: ClassVar[list[list[object]]] = [*OnDevice.params, list(METHODS)]
    param_names: ClassVar[list[str]] = [*OnDevice.param_names, "method"]

    def prepare(self, depth: int, device: str, *rest: object) -> None:
        self.step = training_step(depth, device, str(rest[0]))
        self.run(self.step)

    def time_step(self, depth: int, device: str, method: str) -> None:
        self.run(self.step)


class Ratio(OnDevice):
    """ENorm ÷ BatchNorm, measured in turn in one process; lower is better."""

    def track_step_enorm_over_bn(self, depth: int, device: str) -> float:
        """Whole training steps."""
        calls = {method: training_step(depth, device, method) for method in ("bn", "enorm")}
        seconds = interleaved(calls, device)
        return seconds["enorm"] / seconds["bn"]

    def track_cycle_over_bn_addition(self, depth: int, device: str) -> float:
        """A cycle ÷ what BatchNorm adds to a step; not a number if it adds nothing measurable."""
        calls = {method: training_step(depth, device, method) for method in ("none", "bn")}
        calls["cycle"] = enorm.ENorm(build(depth, device), c=1.2).step
        seconds = interleaved(calls, device)
        added = seconds["bn"] - seconds["none"]
        return seconds["cycle"] / added if added > 0 else float("nan")

    track_step_enorm_over_bn.unit = "BN steps"  # type: ignore[attr-defined]
    track_cycle_over_bn_addition.unit = "BN additions"  # type: ignore[attr-defined]
