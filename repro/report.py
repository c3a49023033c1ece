"""Tables, figures and page again from records alone: ``python -m repro.report DIR``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from repro import cli, page
from repro.options import path


def main(arguments: Sequence[str] | None = None) -> int:
    """Rebuild the outputs in a folder; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m repro.report", description=__doc__)
    parser.add_argument("folder", type=path, help="what an experiment wrote to: it holds records/")
    folder: Path = parser.parse_args(arguments).folder
    try:
        report = page.write(folder, "python -m repro.report DIR")
    except ValueError as error:
        print(f"report: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        text = f"report: cannot write to {folder}: {error.strerror or error}"
        print(text, file=sys.stderr)
        return 2
    cli.tell(report, folder)
    return 0


if __name__ == "__main__":
    sys.exit(main())
