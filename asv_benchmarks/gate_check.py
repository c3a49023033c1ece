"""``python -m asv_benchmarks.gate_check``: does the speed gate see a slowdown, and noise for none?

Compares the working tree with itself, again and again, and with itself made to run every cycle
twice. Writes the page ``speed-gate.md``.
"""

from __future__ import annotations

import argparse
import math
import sys
import tempfile
from pathlib import Path

import torch

from asv_benchmarks.gate import (
    FEWEST_ROUNDS,
    ROOT,
    TOLERATED,
    Outcome,
    compare,
    exit_status,
    lay_out,
)
from asv_benchmarks.subjects import SUBJECTS
from repro.options import folder, within

TWICE = """

_once = ENorm.step


def _twice(self: ENorm) -> None:
    _once(self)
    _once(self)


ENorm.step = _twice  # type: ignore[method-assign]
"""

PAGE = """\
# Does the speed gate see what it should?

Made by `python -m asv_benchmarks.gate_check --runs {runs} --rounds {rounds} --out docs` with torch
{torch}, {threads} threads: the working tree against itself, {runs} times, and once with every cycle
run twice. Red means slower by more than {tolerated:.0%} with 99 % confidence.

| | runs | red | undecided | largest median quotient | largest lower limit |
|---|---|---|---|---|---|
{rows}

With every cycle run twice `exit status {status}`:

```
{planted}
```
"""


def main() -> int:
    """Write the page; 1 if the gate is wrong once."""
    parser = argparse.ArgumentParser(prog="python -m asv_benchmarks.gate_check")
    parser.add_argument("--runs", type=within(1), default=20, help="without a change (default: 20)")
    parser.add_argument("--rounds", type=within(FEWEST_ROUNDS), default=15)
    parser.add_argument("--out", type=folder, default=ROOT / "docs", metavar="DIR")
    options = parser.parse_args()
    subjects = list(SUBJECTS)
    runs: list[list[Outcome]] = []
    with tempfile.TemporaryDirectory() as name:
        root = Path(name).resolve()
        here, base = lay_out(root / "here", None), lay_out(root / "base", None)
        slow = lay_out(root / "slow", None)
        with (slow / "enorm" / "_stepper.py").open("a") as file:
            file.write(TWICE)
        planted = compare(slow, base, subjects, options.rounds)
        print(*planted, sep="\n", flush=True)
        for _ in range(options.runs):
            runs.append(compare(here, base, subjects, options.rounds))
            print(*runs[-1], sep="\n", flush=True)
    rows = []
    for place, subject in enumerate(subjects):
        outcomes = [run[place] for run in runs]
        red = sum(outcome.verdict in ("slower", "broken") for outcome in outcomes)
        unsure = sum(outcome.verdict == "undecided" for outcome in outcomes)
        measured = [outcome for outcome in outcomes if outcome.quotients]
        median = max((outcome.median for outcome in measured), default=math.nan)
        limit = max((outcome.at_least for outcome in measured), default=math.nan)
        cells = [subject, str(len(outcomes)), str(red), str(unsure)]
        rows.append(f"| {' | '.join(cells)} | {median:.2f} | {limit:.2f} |")
    text = PAGE.format(
        runs=options.runs,
        torch=torch.__version__,
        threads=torch.get_num_threads(),
        rounds=options.rounds,
        tolerated=TOLERATED,
        rows="\n".join(rows),
        status=exit_status(planted),
        planted="\n".join(map(str, planted)),
    )
    (options.out / "speed-gate.md").write_text(text)
    return int(exit_status(planted) != 1 or any(exit_status(run) for run in runs))


if __name__ == "__main__":
    sys.exit(main())
