"""Measures one version of ``enorm`` for :mod:`asv_benchmarks.gate`, a line of JSON per request.

Started with the folder of a version in front of Python's path. Each line of standard input names a
subject; the answer is ``{"ratio": …}``, the subject's time as a multiple of a memory pass over the
same weights, or ``{"error": …}``.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable

import enorm
from asv_benchmarks.subjects import SUBJECTS
from asv_benchmarks.suite.common import (
    Call,
    balance,
    cycle,
    interleaved,
    memory_pass,
    training_step,
)
from asv_benchmarks.suite.networks import build

_MAKE: dict[str, Callable[[str], Call]] = {
    "cycle": lambda net: cycle(net, "cpu"),
    "balance": lambda net: balance(net, "cpu"),
    "step": lambda net: training_step(net, "cpu", "enorm", 8),
}


def main() -> None:
    """Answer until standard input ends."""
    print(json.dumps({"enorm": enorm.__file__}), flush=True)
    calls: dict[str, dict[str, Call]] = {}
    for line in sys.stdin:
        name = line.strip()
        try:
            what, net, repetitions = SUBJECTS[name]
            if name not in calls:
                calls[name] = {"subject": _MAKE[what](net), "pass": memory_pass(build(net))}
                interleaved(calls[name], "cpu", rounds=repetitions, warm_up=0)
            seconds = interleaved(calls[name], "cpu", rounds=repetitions, warm_up=1)
            answer: dict[str, object] = {"ratio": seconds["subject"] / seconds["pass"]}
        # Whatever an old or a broken version raises is an answer too.
        except Exception as error:
            answer = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
