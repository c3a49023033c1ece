"""What :mod:`asv_benchmarks.gate` measures; apart from ``enorm``, which may be broken."""

from __future__ import annotations

from typing import Literal, NamedTuple


class Subject(NamedTuple):
    """One thing that is timed.

    Attributes:
        what: a cycle, twenty cycles of balancing, or a training step with batches of 8.
        net: of :data:`asv_benchmarks.suite.networks.NETS`.
        repetitions: interleaved ones that an answer takes.
    """

    what: Literal["cycle", "balance", "step"]
    net: str
    repetitions: int


SUBJECTS = {
    "cycle, fc-9": Subject("cycle", "fc-9", 15),
    "cycle, fc-19": Subject("cycle", "fc-19", 10),
    "cycle, vgg": Subject("cycle", "vgg", 10),
    "balance, fc-9": Subject("balance", "fc-9", 2),
    "step with ENorm, fc-9, batch 8": Subject("step", "fc-9", 10),
}
