"""No seed fails: ``python -m properties.meta.seeds --runs 20`` runs the suite with fresh examples.

As many examples as in the ci profile, drawn from another seed each time.
"""

from __future__ import annotations

import argparse
import os
import re
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import hypothesis
import torch
from tqdm import tqdm

from properties.meta import project

PAGE = project.ROOT / "docs" / "seeds.md"


@dataclass(frozen=True)
class Run:
    """One run of the suite."""

    seed: int
    summary: str
    seconds: float
    failed: bool
    output: str


def run(seed: int, folder: Path) -> Run:
    """All properties, with that seed."""
    start = time.perf_counter()
    files = sorted(path.name for path in (folder / "properties").glob("test_*.py"))
    paths = [f"properties/{name}" for name in files]
    done = project.run_suite(folder, *paths, f"--hypothesis-seed={seed}", profile="ci-seeded")
    last = re.findall(r"^\d+ (?:passed|failed).*$", done.stdout, re.MULTILINE)
    summary = re.sub(r" in .*", "", last[-1]) if last else "no tests ran"
    seconds = time.perf_counter() - start
    return Run(seed, summary, seconds, done.returncode != 0, done.stdout)


def main() -> int:
    """Run, write the page; 1 if a run failed."""
    parser = argparse.ArgumentParser(prog="python -m properties.meta.seeds")
    parser.add_argument("--runs", type=int, default=20)
    parser.add_argument("--first-seed", type=int, default=1)
    options = parser.parse_args()
    seeds = range(options.first_seed, options.first_seed + options.runs)
    with (
        tempfile.TemporaryDirectory() as name,
        ThreadPoolExecutor(max_workers=os.cpu_count()) as pool,
    ):
        project.copy_to(Path(name))
        started = [pool.submit(run, seed, Path(name)) for seed in seeds]
        runs = [one.result() for one in tqdm(started, unit="run")]
    failed = [one for one in runs if one.failed]
    rows = "\n".join(f"| {one.seed} | {one.summary} | {one.seconds:.0f} |" for one in runs)
    PAGE.write_text(
        f"# {len(runs)} runs with different seeds\n\nMade by `python -m properties.meta.seeds "
        f"--runs {options.runs} --first-seed {options.first_seed}`: every property with as many\n"
        "examples as in the ci profile, drawn afresh. "
        f"{len(runs) - len(failed)} of {len(runs)} runs pass. torch {torch.__version__}, "
        f"hypothesis {hypothesis.__version__},\n{os.cpu_count()} runs at a time, one thread each."
        "\n\n| seed | outcome | seconds |\n| --- | --- | --- |\n" + rows + "\n"
    )
    print(f"written: {PAGE}")
    for one in failed:
        print(one.output, file=sys.stderr)
    return bool(failed)


if __name__ == "__main__":
    sys.exit(main())
