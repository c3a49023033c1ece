"""What the report discusses beside its figures (§4.1, §4.2), one change of the recipe at a time.

Run ``python -m repro.considerations --help`` for the options.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from repro import cli
from repro.experiments import CONSIDERATIONS


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the experiment; returns the exit status."""
    return cli.main(CONSIDERATIONS, arguments)


if __name__ == "__main__":
    sys.exit(main())
