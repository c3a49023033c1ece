"""Table, figures and page again from records alone: ``python -m repro.report DIR``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from repro import cli, records
from repro.spec import METHODS


def main(arguments: Sequence[str] | None = None) -> int:
    """Rebuild the outputs of Figure 2 in a folder; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m repro.report", description=__doc__)
    parser.add_argument("folder", type=Path, help="what a figure wrote to: it holds records/")
    folder: Path = parser.parse_args(arguments).folder
    try:
        found = sorted(
            records.read_all(folder / "records"),
            key=lambda record: (
                record.spec.seed,
                record.spec.depth,
                METHODS.index(record.spec.method),
            ),
        )
        if not found:
            raise ValueError(f"{folder / 'records'} holds no run records: give a figure's --out")
        cli.write_outputs("figure2", "Figure 2", found, folder, "python -m repro.report DIR")
    except ValueError as error:
        print(f"report: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
