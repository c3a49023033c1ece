"""Figure 2 of the report: Baseline, BN, ENorm and ENorm + BN at depths 1, 3 … 19.

Run ``python -m repro.figure2 --help`` for the options.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from repro import cli
from repro.experiments import FIGURE2


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the experiment; returns the exit status."""
    return cli.main(FIGURE2, arguments)


if __name__ == "__main__":
    sys.exit(main())
