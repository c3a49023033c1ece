"""What the suite is worth, as a page: ``python -m properties.meta.report`` writes it.

How often the strategies reach what they claim, how loose the tolerances are, and what a user reads
when the suite meets a broken cycle.
"""

from __future__ import annotations

import argparse
import re
import statistics
import sys
import tempfile
from pathlib import Path

from properties.meta.coverage import DTYPES, FEATURES, shares
from properties.meta.looseness import BOUNDS, ratios
from properties.meta.mutants import MUTANTS, plant
from properties.meta.project import ROOT, run_suite

PAGE = ROOT / "docs" / "suite.md"
BROKEN = "bias not scaled"
EXAMPLES = 1000


def coverage_table() -> str:
    """Share of drawn networks by feature."""
    found = shares(EXAMPLES)
    rows = [f"| {name} | {100 * found[name]:.0f} % |" for name in FEATURES]
    return "| feature | share of networks |\n| --- | --- |\n" + "\n".join(rows)


def looseness_table() -> str:
    """Largest and median measured ÷ bound by bound and dtype."""
    by_dtype = {dtype: ratios(dtype, EXAMPLES // 4) for dtype in DTYPES}
    rows = []
    for name in BOUNDS:
        cells = [
            f"{max(found[name]):.2g} ({statistics.median(found[name]):.1g})"
            for found in by_dtype.values()
        ]
        rows.append(f"| {name} | " + " | ".join(cells) + " |")
    head = f"| bound | {' | '.join(DTYPES)} |\n|{' --- |' * (len(DTYPES) + 1)}\n"
    return head + "\n".join(rows)


def broken_output() -> str:
    """What pytest prints of a copy with a planted bug."""
    mutant = next(mutant for mutant in MUTANTS if mutant.name == BROKEN)
    with tempfile.TemporaryDirectory() as name:
        plant(mutant, Path(name))
        target = f"properties/{mutant.killer}"
        done = run_suite(Path(name), target, "--tb=short", "--no-header", profile="ci")
        text = re.sub(r"\.hypothesis/patches/[^`]+", ".hypothesis/patches/….patch", done.stdout)
        text = re.sub(r" in \d+\.\d+s.*", "", text)
        return text.replace(f"{name}/", "").strip()


def main() -> int:
    """Write the page."""
    argparse.ArgumentParser(
        prog="python -m properties.meta.report", description=f"Write {PAGE.name}; takes minutes."
    ).parse_args()
    mutant = next(mutant for mutant in MUTANTS if mutant.name == BROKEN)
    PAGE.write_text(
        f"""# What the suite is worth

Made by `python -m properties.meta.report`. Beside this page: [planted bugs](mutants.md), the
[mutation score](mutation.md), [runs with different seeds](seeds.md), and
[other implementations](conformance.md).

## What is drawn

{EXAMPLES} networks as most properties draw them. `properties/meta/test_strategies.py` fails when a
share falls below 2 %, and when a feature does not shrink to a small network.

{coverage_table()}

## How loose the bounds are

Measured ÷ bound, the largest and (in brackets) the median of {EXAMPLES // 4} networks each, for
one cycle of Algorithm 1 in ordinary arithmetic (`properties/adapters/plain.py`): weights in the
dtype of the column, norms in float32 (float64 for float64). Above 1 a bound would be wrong, far
below it would let bugs through. The energy's rise is the largest in thirty cycles.

{looseness_table()}

## What a broken cycle looks like

Planted: {mutant.name}. In `enorm/{mutant.file}`, `{mutant.old}` became `{mutant.new}`; then
`HYPOTHESIS_PROFILE=ci pytest properties/{mutant.killer} --tb=short` prints:

```text
{broken_output()}
```

The line under `replay` runs that one example again, without Hypothesis' database or seed. What the
training loop's state machine finds is printed as its calls, and replayed by Hypothesis.
"""
    )
    print(f"written: {PAGE}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
