"""Command lines of the experiments: options, what they mean, and how failures are told."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import get_args

import torch

from repro import gate, page
from repro.data import DataError, load
from repro.experiments import Experiment
from repro.options import given, path, within
from repro.page import Report
from repro.spec import PRESETS
from repro.sweep import Executor, run_all

# More than any machine has; torch fails on numbers that are larger by far.
_THREADS = 4096
# A list of all runs is made before the first.
_SEEDS = 1_000_000


def main(experiment: Experiment, arguments: Sequence[str] | None) -> int:
    """Run an experiment from its command line.

    Args:
        experiment: what to run.
        arguments: the command line; None takes the process's own.

    Returns:
        The exit status: 0; 1 where ``--gate`` finds a difference; 2 where the request cannot be
        met or nothing was measured; 130 where it was interrupted.
    """
    name = experiment.name
    options = _parser(experiment).parse_args(arguments)
    preset = PRESETS[options.preset]
    if options.epochs is not None:
        preset = replace(preset, epochs=options.epochs)
    source = preset.data if options.data is None else options.data
    out: Path = options.out or Path("results") / preset.name
    ids = options.methods or [series.id for series in experiment.series]
    words = list(arguments if arguments is not None else sys.argv[1:])
    try:
        device = _device(options.device)
        if options.threads is not None:
            torch.set_num_threads(options.threads)
        count = preset.seeds if options.seeds is None else options.seeds
        seeds = range(options.first_seed, options.first_seed + count)
        specs = experiment.specs(preset, seeds, options.depths, ids)
        if options.gate:
            gate.require(specs, preset, out / "records")
        images = load(source)
        many = f"{len(specs)} run{'s' * (len(specs) > 1)}"
        text = f"{experiment.title}, preset {preset.name}: {many} on {images.form}"
        print(text, file=sys.stderr)
        done = run_all(specs, images, out / "records", device, options.executor)
        report = page.write(out, f"python -m repro.{name} {_shown(words, source)}")
        tell(report, out, name)
        return gate.check(done, report, preset) if options.gate else 0
    except (DataError, ValueError) as error:
        return _fail(name, str(error))
    except OSError as error:
        return _fail(name, f"cannot write to {out}: {error.strerror or error}; use another --out")
    except KeyboardInterrupt:
        text = f"{name}: stopped; finished runs are in {out / 'records'}, the same command goes on"
        print(f"\n{text}", file=sys.stderr)
        return 130


def tell(report: Report, out: Path, name: str | None = None) -> None:
    """Print an experiment's table (None: all) and the verdicts."""
    for section in report.sections:
        if name in (None, section.experiment.name):
            print(section.heading)
            if len(section.rows):
                print(section.rows.to_string(index=False, float_format="%.2f", na_rep="-"))
    for finding in report.findings:
        if finding.verdict != "not run":
            effect = f" ({finding.effect})" if finding.effect else ""
            print(f"{finding.verdict}: {finding.claim.text}{effect}")
    print(f"written: tables, figures and report.html in {out}/, runs in {out}/records/")


def _parser(experiment: Experiment) -> argparse.ArgumentParser:
    name = experiment.name
    ids = [series.id for series in experiment.series]
    methods = list(dict.fromkeys(series.method for series in experiment.series))
    parser = argparse.ArgumentParser(
        prog=f"python -m repro.{name}",
        description=f"{experiment.title} of the report, run again.",
        allow_abbrev=False,
    )
    parser.add_argument("--preset", choices=PRESETS, default="paper", help="sizes (default: paper)")
    parser.add_argument(
        "--seeds",
        type=within(1, _SEEDS),
        metavar="N",
        help="how many seeds, from 0 or --first-seed on",
    )
    parser.add_argument(
        "--first-seed",
        type=within(0, 2**31),
        default=0,
        metavar="K",
        help="where --seeds starts: to add seeds, or share them among machines (default: 0)",
    )
    parser.add_argument(
        "--data",
        type=given,
        metavar="PATH|cifar10|synthetic",
        help="a folder with train/CLASS/ and test/CLASS/, CIFAR-10 by download, or drawn images "
        "(default: cifar10; with --preset quick: synthetic)",
    )
    parser.add_argument("--depths", type=int, nargs="+", metavar="D", help="intermediary layers")
    parser.add_argument(
        "--methods",
        choices=list(dict.fromkeys([*methods, *ids])),
        nargs="+",
        metavar="M",
        help=f"all series of a method ({', '.join(methods)}) or single ones ({', '.join(ids)})",
    )
    parser.add_argument(
        "--epochs",
        type=within(1),
        metavar="E",
        help="instead of the preset's; 1 shows divergence",
    )
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1 (default: auto)")
    parser.add_argument(
        "--threads", type=within(1, _THREADS), help="CPU threads (default: torch's choice)"
    )
    parser.add_argument(
        "--executor",
        choices=get_args(Executor),
        default="local",
        help="ray sends runs to a Ray cluster (RAY_ADDRESS, else this machine; default: local)",
    )
    parser.add_argument("--out", type=path, metavar="DIR", help="default: results/PRESET")
    parser.add_argument(
        "--gate",
        action="store_true",
        help="exit with 1 where runs or verdicts differ from the committed ones",
    )
    return parser


def _device(name: str) -> torch.device:
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.zeros((), device=device).item()
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"--device {name} cannot be used here ({reason}): use cpu") from error
    return device


def _shown(words: Sequence[str], source: str) -> str:
    """The command line without the machine's own paths."""
    places = {"--out": "DIR"}
    if Path(source).is_dir():
        places["--data"] = "PATH"
    parts = list(words)
    for index, part in enumerate(words):
        option, equals, _ = part.partition("=")
        if equals and option in places:
            parts[index] = option + equals + places[option]
        elif index > 0 and words[index - 1] in places:
            parts[index] = places[words[index - 1]]
    return " ".join(parts)


def _fail(name: str, message: str) -> int:
    print(f"{name}: {message}", file=sys.stderr)
    return 2
