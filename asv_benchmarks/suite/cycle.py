"""ENorm alone: one cycle, and many to the minimum."""

from __future__ import annotations

from typing import ClassVar

import enorm

from .common import DEVICES, OnDevice, balance, cycle, interleaved, memory_pass
from .networks import CONVOLUTIONAL, DEEP, NETS, build


class Cycle(OnDevice):
    """A cycle of Algorithm 1, c = 1.2, as a training loop calls it."""

    params: ClassVar[list[list[object]]] = [list(NETS), list(DEVICES)]

    def prepare(self, net: str, device: str, *_: object) -> None:
        self.step = cycle(net, device)
        self.run(self.step)

    # Weights settle within the warm-up, and a cycle takes as long on settled ones.
    def time_cycle(self, net: str, device: str) -> None:
        self.run(self.step)

    def track_cycle_over_memory_pass(self, net: str, device: str) -> float:
        """Cycle ÷ (one read pass + one read-write pass over the same weights)."""
        seconds = interleaved({"cycle": self.step, "pass": memory_pass(build(net, device))}, device)
        return seconds["cycle"] / seconds["pass"]

    track_cycle_over_memory_pass.unit = "memory passes"  # type: ignore[attr-defined]


class Compiled(OnDevice):
    """The same with ``compile=True``."""

    params: ClassVar[list[list[object]]] = [[*DEEP, *CONVOLUTIONAL], list(DEVICES)]

    def track_cycle_over_memory_pass(self, net: str, device: str) -> float:
        """Cycle ÷ (one read pass + one read-write pass over the same weights)."""
        calls = {
            "cycle": cycle(net, device, compile=True),
            "pass": memory_pass(build(net, device)),
        }
        seconds = interleaved(calls, device)
        return seconds["cycle"] / seconds["pass"]

    track_cycle_over_memory_pass.unit = "memory passes"  # type: ignore[attr-defined]


class Balance(OnDevice):
    """The way to the minimum."""

    params: ClassVar[list[list[object]]] = [[*DEEP, *CONVOLUTIONAL], list(DEVICES)]

    def track_twenty_cycles_over_memory_pass(self, net: str, device: str) -> float:
        """Twenty over-relaxed cycles with looking for the groups and writing the weights."""
        calls = {"balance": balance(net, device), "pass": memory_pass(build(net, device))}
        seconds = interleaved(calls, device, rounds=5, warm_up=1)
        return seconds["balance"] / seconds["pass"]

    def track_cycles_to_tolerance(self, net: str, device: str) -> int:
        """Over-relaxed cycles from He initialisation to a residual of 1e-8."""
        return enorm.balance_(build(net, device).double()).cycles

    track_twenty_cycles_over_memory_pass.unit = "memory passes"  # type: ignore[attr-defined]
    track_cycles_to_tolerance.unit = "cycles"  # type: ignore[attr-defined]
