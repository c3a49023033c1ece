"""Figure 3 of the report: Baseline and ENorm with biases, and two ways that keep ENorm finite.

Run ``python -m repro.figure3 --help`` for the options.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from repro import cli
from repro.experiments import FIGURE3


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the experiment; returns the exit status."""
    return cli.main(FIGURE3, arguments)


if __name__ == "__main__":
    sys.exit(main())
