"""What options of the command lines may be, of the experiments and of the benchmarks."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from pathlib import Path


def given(text: str) -> str:
    """Not nothing, which a shell's variable that is not set would leave."""
    if not text:
        raise argparse.ArgumentTypeError("is empty")
    return text


def within(least: int, most: float = math.inf) -> Callable[[str], int]:
    """A whole number from ``least`` to ``most``."""

    def number(text: str) -> int:
        value = int(text)
        if value < least:
            raise argparse.ArgumentTypeError(f"must be at least {least}, got {value}")
        if value > most:
            raise argparse.ArgumentTypeError(f"must be at most {most}, got {value}")
        return value

    return number


def folder(text: str) -> Path:
    """A folder that is there, or is made."""
    path = Path(given(text))
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise argparse.ArgumentTypeError(str(error)) from error
    return path
