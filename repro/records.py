"""Run records: one JSON file per finished run, written whole or not at all."""

from __future__ import annotations

import contextlib
import json
import platform
import subprocess
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch

import enorm
from repro.data import Images
from repro.files import write_atomically
from repro.spec import METHODS, RunSpec
from repro.train import Epoch, RunResult, ScalePoint

_SCHEMA = 1


@dataclass(frozen=True)
class Record:
    """A finished run: what was asked, what came out, and where it ran."""

    key: str
    spec: RunSpec
    result: RunResult
    data: dict[str, Any]
    environment: dict[str, Any]
    numerics_version: int

    @property
    def file_name(self) -> str:
        """Readable, and unique by the first half of the key's digits."""
        method = self.spec.method.replace("+", "-")
        return f"{method}-d{self.spec.depth:02d}-s{self.spec.seed}-{self.key[:12]}.json"


def describe_environment(device: torch.device) -> dict[str, Any]:
    """Versions, device, threads and commit: what else may change a result's last bits."""
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": np.__version__,
        "enorm": enorm.__version__,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else _processor(),
        "device_type": device.type,
        "threads": torch.get_num_threads(),
        **code_version(),
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def make(
    spec: RunSpec,
    result: RunResult,
    images: Images,
    key: str,
    device: torch.device,
    *,
    together: int = 1,
) -> Record:
    """A record of ``result``, with the environment as it is now.

    ``together`` is how many runs were one batched model: with another number a device may round
    otherwise.
    """
    data = {
        "form": images.form,
        "cifar10": images.cifar10,
        "train_images": len(images.train),
        "test_images": len(images.test),
        "hash": images.hash,
    }
    environment = {**describe_environment(device), "together": together}
    return Record(key, spec, result, data, environment, spec.numerics_version)


def write(folder: Path, record: Record) -> Path:
    """Write ``record`` into ``folder`` atomically and durably.

    Raises:
        OSError: the folder cannot be written.
    """
    content = {"schema": _SCHEMA, **asdict(record)}
    target = folder / record.file_name
    write_atomically(target, (json.dumps(content, indent=1) + "\n").encode())
    return target


def read(path: Path) -> Record:
    """The record in a file.

    Raises:
        ValueError: it cannot be read, or is not a whole record of this schema.
    """
    try:
        text = path.read_text()
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is no run record, for it is no text: delete it") from error
    try:
        content = json.loads(text)
        if "schema" not in content:
            raise ValueError("it says no schema")
        if content["schema"] != _SCHEMA:
            raise ValueError(f"schema {content['schema']}, expected {_SCHEMA}")
        result = content["result"]
        result["curve"] = tuple(Epoch(**epoch) for epoch in result["curve"])
        if result["diverged_at"] is not None:
            result["diverged_at"] = tuple(result["diverged_at"])
        result["scales"] = tuple(
            ScalePoint(point["step"], tuple(point["log2_a"])) for point in result.get("scales", ())
        )
        record = Record(
            content["key"],
            RunSpec(**content["spec"]),
            RunResult(**result),
            content["data"],
            content["environment"],
            content["numerics_version"],
        )
        _check(record)
        if record.key != record.spec.key(record.data["hash"], record.numerics_version):
            raise ValueError("its key is not that of its spec, numerics and images")
        return record
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(
            f"{path} is no whole run record: {error}; delete it, and the run is made again"
        ) from error


def _check(record: Record) -> None:
    """Raise ValueError if a value is none that a run leaves."""
    result = record.result
    for key in ("form", "hash", "cifar10"):
        record.data[key]
    record.environment["torch"]
    if not isinstance(record.numerics_version, int):
        raise TypeError(f"its numerics_version is {record.numerics_version!r}, no whole number")
    for key, value in record.environment.items():
        if isinstance(value, (list, dict)):
            raise TypeError(f"{key} of its environment is neither a number nor a text")
    numbers = [result.accuracy] if result.outcome == "finite" else []
    for epoch in result.curve:
        numbers += [epoch.train_loss, epoch.test_loss, epoch.test_accuracy, epoch.seconds]
    if not all(isinstance(one, (int, float)) for one in numbers):
        raise ValueError("a result of it is no number")
    accuracies = [epoch.test_accuracy for epoch in result.curve]
    if not all(0 <= one <= 100 for one in accuracies):
        raise ValueError("a test accuracy of it is no percentage")
    spec = record.spec
    if spec.method not in METHODS:
        raise ValueError(f"its method is {spec.method!r}, none of {', '.join(METHODS)}")
    if spec.train_images > record.data["train_images"]:
        raise ValueError("it was trained on more images than there are")
    ended = spec.epochs if result.diverged_at is None else result.diverged_at[0]
    if len(result.curve) != ended:
        raise ValueError(f"its curve has {len(result.curve)} epochs, and {ended} were ended")
    if result.outcome == "finite":
        # Of the last epoch, or of the one that validation chose.
        if result.accuracy not in (accuracies if spec.validation else accuracies[-1:]):
            raise ValueError(
                f"its accuracy, {result.accuracy}, is not that of the epoch it ends in"
            )
    elif result.outcome != "diverged":
        raise ValueError(f"its outcome is {result.outcome!r}, neither finite nor diverged")
    elif [type(one) for one in result.diverged_at or ()] != [int, int]:
        raise ValueError(f"it diverged at {result.diverged_at}, not in a step of an epoch")


def read_all(folder: Path) -> Iterator[Record]:
    """The records of a folder, by file name, each run once: that of its newest numerics.

    Raises:
        ValueError: a file there is no whole run record; the message names it.
    """
    found = [read(path) for path in sorted(folder.glob("*.json"))]
    newest: dict[tuple[RunSpec, str], Record] = {}
    for record in found:
        run = record.spec, record.data["hash"]
        # A copied file is no further run.
        if run not in newest or record.numerics_version > newest[run].numerics_version:
            newest[run] = record
    yield from newest.values()


def _processor() -> str:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def code_version() -> dict[str, Any]:
    """The project's commit and whether code that makes results differs from it."""

    def git(*arguments: str) -> str:
        root = Path(__file__).parent
        done = subprocess.run(
            ["git", "-C", str(root), *arguments], capture_output=True, text=True, check=True
        )
        return done.stdout.strip()

    try:
        status = git("status", "--porcelain", "--", ":/enorm/*.py", ":/repro/*.py")
        return {"commit": git("rev-parse", "HEAD"), "modified": bool(status)}
    except (OSError, subprocess.CalledProcessError):
        return {"commit": None, "modified": None}
