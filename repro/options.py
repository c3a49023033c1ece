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
    path = Path(given(text))
    try:
        path.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=path).close()
    except OSError as error:
        raise argparse.ArgumentTypeError(str(error)) from error
    return path


def illustrated(text: str) -> Path:
    """A folder for a page with pictures, which matplotlib draws."""
    if find_spec("matplotlib") is None:
        raise argparse.ArgumentTypeError("needs matplotlib: pip install 'enorm[repro]'")
    return folder(text)


def file(text: str) -> Path:
    """A file that can be written."""
    path = Path(given(text))
    if path.is_dir():
        raise argparse.ArgumentTypeError(f"{path} is a folder")
    folder(str(path.parent))
    return path
