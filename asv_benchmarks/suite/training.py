"""A training step with nothing, BatchNorm, GroupNorm, ENorm, and ENorm with BatchNorm."""

from __future__ import annotations

import statistics
from typing import ClassVar

from .common import (
    BATCH,
    DEVICES,
    METHODS,
    OnDevice,
    cycle,
    excess,
    in_turn,
    interleaved,
    training_step,
)
from .networks import DEEP

STEPS = [*DEEP, "vgg"]


class Step(OnDevice):
    """Forward, backward, SGD and, with ENorm, a cycle."""

    params: ClassVar[list[list[object]]] = [list(STEPS), list(DEVICES), list(METHODS)]
    param_names: ClassVar[list[str]] = ["net", "device", "method"]

    def prepare(self, net: str, device: str, *rest: object) -> None:
        self.method = str(rest[0])
        self.step = training_step(net, device, self.method, batch_of(net))
        self.run(self.step)

    def time_step(self, net: str, device: str, method: str) -> None:
        self.run(self.step)

    def track_step_over_plain(self, net: str, device: str, method: str) -> float:
        """Step ÷ step without normalization, in turn."""
        calls = {"step": self.step, "plain": training_step(net, device, "none", batch_of(net))}
        seconds = interleaved(calls, device, rounds=10, warm_up=2)
        return seconds["step"] / seconds["plain"]

    track_step_over_plain.unit = "plain steps"  # type: ignore[attr-defined]


class Ratio(OnDevice):
    """ENorm ÷ BatchNorm, measured in turn in one process; lower is better."""

    params: ClassVar[list[list[object]]] = [list(STEPS), list(DEVICES)]

    def track_step_enorm_over_bn(self, net: str, device: str) -> float:
        """Whole training steps."""
        calls = {
            method: training_step(net, device, method, batch_of(net)) for method in ("bn", "enorm")
        }
        seconds = interleaved(calls, device, rounds=10, warm_up=2)
        return seconds["enorm"] / seconds["bn"]

    def track_cycle_over_bn_addition(self, net: str, device: str) -> float:
        """A cycle ÷ what BatchNorm adds to a step; not a number if it adds nothing measurable."""
        calls = {
            method: training_step(net, device, method, batch_of(net)) for method in ("none", "bn")
        }
        calls["cycle"] = cycle(net, device)
        seconds = in_turn(calls, device, rounds=30, warm_up=2)
        added = excess(seconds, "bn", "none")
        return statistics.median(seconds["cycle"]) / added if added > 0 else float("nan")

    track_step_enorm_over_bn.unit = "BN steps"  # type: ignore[attr-defined]
    track_cycle_over_bn_addition.unit = "BN additions"  # type: ignore[attr-defined]


class SmallBatches(OnDevice):
    """What a cycle costs at once, BatchNorm costs per batch: fewer images, larger share."""

    params: ClassVar[list[list[object]]] = [["fc-9"], list(DEVICES), [2, 8, 32, 128, 256]]
    param_names: ClassVar[list[str]] = ["net", "device", "batch"]

    def track_step_enorm_over_bn(self, net: str, device: str, batch: int) -> float:
        """Whole training steps."""
        calls = {method: training_step(net, device, method, batch) for method in ("bn", "enorm")}
        seconds = interleaved(calls, device)
        return seconds["enorm"] / seconds["bn"]

    track_step_enorm_over_bn.unit = "BN steps"  # type: ignore[attr-defined]


def batch_of(net: str) -> int:
    """Fewer images where each is more work."""
    return BATCH if net.startswith("fc") else 16
