"""Measures one version of ``enorm`` for :mod:`asv_benchmarks.gate`, a line of JSON per request.

Started with the folder of a version in front of Python's path. Each line of standard input names a
subject; the answer is ``{"seconds": …}``, the shortest of its repetitions, or ``{"error": …}``.
Between repetitions a memory pass over other weights of that size leaves the caches alike. What the
version itself prints goes to standard error.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from typing import TextIO

import torch

import enorm
from asv_benchmarks.subjects import SUBJECTS
from asv_benchmarks.suite.common import (
    Call,
    balance,
    cycle,
    in_turn,
    memory_pass,
    training_step,
)
from asv_benchmarks.suite.networks import build

_MAKE: dict[str, Callable[[str], Call]] = {
    "cycle": lambda net: cycle(net, "cpu"),
    "balance": lambda net: balance(net, "cpu"),
    "step": lambda net: training_step(net, "cpu", "enorm", 8),
}


def check_work(what: str, net: str) -> None:
    """RuntimeError if all weights stay as they are, however fast that is."""
    model = build(net)
    before = [one.detach().clone() for one in model.parameters()]
    if what == "balance":
        enorm.balance_(model, tol=0.0, max_cycles=1)
    else:
        enorm.ENorm(model, c=1.2).step()
    if all(map(torch.equal, before, model.parameters())):
        raise RuntimeError("it rescales nothing")


def main() -> None:
    """Answer until standard input ends."""
    # What was printed during the import comes out as an answer, buffered or not: it is broken.
    sys.stdout.flush()
    with os.fdopen(os.dup(sys.stdout.fileno()), "w") as answers:
        os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
        _answer(answers)


def _answer(answers: TextIO) -> None:
    print(json.dumps({"enorm": enorm.__file__}), file=answers, flush=True)
    calls: dict[str, dict[str, Call]] = {}
    for line in sys.stdin:
        name = line.strip()
        try:
            what, net, repetitions = SUBJECTS[name]
            if name not in calls:
                check_work(what, net)
                calls[name] = {"subject": _MAKE[what](net), "pass": memory_pass(build(net))}
                in_turn(calls[name], "cpu", rounds=repetitions, warm_up=0)
            seconds = in_turn(calls[name], "cpu", rounds=repetitions, warm_up=1)
            answer: dict[str, object] = {"seconds": min(seconds["subject"])}
        # Whatever an old or a broken version raises is an answer too.
        except Exception as error:
            answer = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    main()
