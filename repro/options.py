"""What options of the command lines may be, of the experiments and of the benchmarks."""

from __future__ import annotations

import argparse
import math
import tempfile
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path


def given(text: str) -> str:
    """Not nothing, which a shell's variable that is not set would leave."""
    if not text:
        raise argparse.ArgumentTypeError("is empty")
    return text


def path(text: str) -> Path:
    """Of a file or a folder."""
    return Path(given(text))


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
    """A folder that is there, or is made, and can be written to."""
    place = path(text)
    try:
        place.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=place).close()
    except OSError as error:
        raise argparse.ArgumentTypeError(str(error)) from error
    return place


def illustrated(text: str) -> Path:
    """A folder for a page with pictures, which matplotlib draws."""
    if find_spec("matplotlib") is None:
        raise argparse.ArgumentTypeError("needs matplotlib: pip install -e '.[repro]'")
    return folder(text)


def file(text: str) -> Path:
    """A file that can be written."""
    place = path(text)
    if place.is_dir():
        raise argparse.ArgumentTypeError(f"{place} is a folder")
    folder(str(place.parent))
    return place
