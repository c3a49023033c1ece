"""Command lines of the experiments: options, what they mean, and how failures are told."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from repro import figure, page, table
from repro.data import DataError, load
from repro.records import Record, write_atomically
from repro.spec import METHODS, PRESETS, Method, Preset, RunSpec
from repro.sweep import run_all

MakeSpecs = Callable[[Preset, int, Sequence[int], Sequence[Method]], list[RunSpec]]


def main(name: str, title: str, make_specs: MakeSpecs, arguments: Sequence[str] | None) -> int:
    """Run an experiment from its command line.

    Args:
        name: module and file name, such as "figure2".
        title: its name on outputs, such as "Figure 2".
        make_specs: the runs for a preset, a number of seeds, depths and methods.
        arguments: the command line; None takes the process's own.

    Returns:
        The exit status: 0, 2 where the request cannot be met, 130 where it was interrupted.
    """
    parser = _parser(name, title)
    options = parser.parse_args(arguments)
    preset = PRESETS[options.preset]
    source = options.data or preset.data
    out: Path = options.out or Path("results") / name
    depths = options.depths or preset.depths
    given = list(arguments if arguments is not None else sys.argv[1:])
    try:
        device = _device(options.device)
        if options.threads is not None:
            torch.set_num_threads(options.threads)
        seeds = preset.seeds if options.seeds is None else options.seeds
        specs = make_specs(preset, seeds, depths, options.methods)
        images = load(source)
        print(f"{title}, preset {preset.name}: {len(specs)} runs on {images.form}", file=sys.stderr)
        done = run_all(specs, images, out / "records", device)
        write_outputs(name, title, done, out, f"python -m repro.{name} {_shown(given, source)}")
    except (DataError, ValueError) as error:
        return _fail(name, str(error))
    except OSError as error:
        return _fail(name, f"cannot write to {out}: {error.strerror or error}; use another --out")
    except KeyboardInterrupt:
        text = f"{name}: stopped; finished runs are in {out / 'records'}, the same command goes on"
        print(f"\n{text}", file=sys.stderr)
        return 130
    return 0


def write_outputs(name: str, title: str, done: Sequence[Record], out: Path, command: str) -> None:
    """Table, figures and page of ``done``, and the table on standard output."""
    heading = page.heading(title, done)
    rows = table.summary(done)
    write_atomically(out / f"{name}.csv", rows.to_csv(index=False, float_format="%.6g").encode())
    figure.save(figure.accuracy_figure(done, heading), out / name)
    figure.save(figure.curves_figure(done, heading), out / f"{name}-curves")
    write_atomically(out / f"{name}.html", page.render(title, done, command).encode())
    print(heading)
    print(rows.to_string(index=False, float_format="%.2f", na_rep="-"))
    print(f"written: {out}/{name}.csv, .png, .svg, .html, {name}-curves.png, .svg and records/")


def _parser(name: str, title: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=f"python -m repro.{name}", description=f"{title} of the report, run again."
    )
    parser.add_argument("--preset", choices=PRESETS, default="paper", help="sizes (default: paper)")
    parser.add_argument("--seeds", type=_positive, metavar="N", help="seeds 0 to N − 1")
    parser.add_argument(
        "--data",
        metavar="PATH|cifar10|synthetic",
        help="a folder with train/CLASS/ and test/CLASS/, CIFAR-10 by download, or drawn images "
        "(default: cifar10; with --preset quick: synthetic)",
    )
    parser.add_argument("--depths", type=int, nargs="+", metavar="D", help="intermediary layers")
    parser.add_argument("--methods", choices=METHODS, nargs="+", default=METHODS)
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1 (default: auto)")
    parser.add_argument("--threads", type=_positive, help="CPU threads (default: torch's choice)")
    parser.add_argument("--out", type=Path, metavar="DIR", help=f"default: results/{name}")
    return parser


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, got {value}")
    return value


def _device(name: str) -> torch.device:
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"--device {name} cannot be used here ({reason}): use cpu") from error
    return device


def _shown(given: Sequence[str], source: str) -> str:
    """The command line without the machine's own paths."""
    parts = ["PATH" if value == source and Path(value).is_dir() else value for value in given]
    if "--out" in parts:
        parts[parts.index("--out") + 1] = "DIR"
    return " ".join(parts)


def _fail(name: str, message: str) -> int:
    print(f"{name}: {message}", file=sys.stderr)
    return 2
