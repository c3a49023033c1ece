"""Mutation score of ``enorm/``: ``python -m properties.meta.mutation``, which takes hours.

``mutmut`` changes one operator, constant, argument or message at a time; the tests and the type
checker, which CI both runs, should notice. As there are thousands of such changes, a sample is
drawn; what survives of it is listed with a reason.
"""

from __future__ import annotations

import argparse
import os
import random
import re
import subprocess
import sys
import tomllib
from collections import Counter
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from pathlib import Path

from scipy.stats import binomtest

from properties.meta.project import ROOT

PAGE = ROOT / "docs" / "mutation.md"
REASONS = Path(__file__).with_name("survivors.toml")
_CAUGHT = ("killed", "caught by type check", "timeout")


@dataclass(frozen=True)
class Survivor:
    """A change that nothing noticed.

    Attributes:
        function: the function it is in, ``_module.function``.
        before: the lines that it takes away.
        after: the lines that stand there instead.
    """

    function: str
    before: str
    after: str


def mutmut(*arguments: str) -> str:
    """What a command of ``mutmut`` prints."""
    done = subprocess.run(
        [sys.executable, "-m", "mutmut", *arguments],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return done.stdout


def results() -> dict[str, str]:
    """Status by mutant."""
    lines = mutmut("results", "--all", "true").splitlines()
    return dict(line.strip().rsplit(": ", 1) for line in lines if ": " in line)


def run(*names: str, quiet: bool = False) -> None:
    """Try the mutants of these names."""
    subprocess.run(
        [sys.executable, "-m", "mutmut", "run", f"--max-children={os.cpu_count()}", *names],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stderr=subprocess.PIPE if quiet else None,
        check=not quiet,
    )


def sample(names: Iterable[str], size: int, seed: int) -> list[str]:
    """``size`` of the names, whatever their order; all of them for 0."""
    ordered = sorted(names)
    return random.Random(seed).sample(ordered, size) if 0 < size < len(ordered) else ordered


def function_of(name: str) -> str:
    """``_module.function`` that a mutant is of."""
    # enorm._solve.xǁScalesǁcycle__mutmut_3 is of Scales.cycle in _solve,
    # enorm._solve.x__cap__mutmut_1 of _cap.
    path, mangled = name.removeprefix("enorm.").rsplit(".", 1)
    function = mangled.rsplit("__mutmut_", 1)[0].removeprefix("xǁ").removeprefix("x_")
    return f"{path}.{function.replace('ǁ', '.')}"


def survivor(name: str) -> Survivor:
    """What the mutant of that name changes."""
    changed = [
        line
        for line in mutmut("show", name).splitlines()
        if line[:1] in "+-" and not line.startswith(("+++", "---"))
    ]
    before, after = (
        " ".join(line[1:].strip() for line in changed if line.startswith(sign)) for sign in "-+"
    )
    return Survivor(function_of(name), before, after)


def reasons() -> list[tuple[re.Pattern[str], re.Pattern[str], str]]:
    """Function, change and reason of each entry."""
    entries = tomllib.loads(REASONS.read_text())["survivor"]
    return [
        (re.compile(entry["function"]), re.compile(entry["after"]), entry["reason"])
        for entry in entries
    ]


def page(
    statuses: dict[str, str], drawn: Collection[str], survivors: list[Survivor], seed: int
) -> tuple[str, list[str]]:
    """The page, and what is wrong with the reasons.

    That is a survivor without one, an entry whose function is gone and, where every change was
    tried, an entry that fits no survivor.
    """
    counts = Counter(statuses[name] for name in drawn)
    caught = sum(counts[status] for status in _CAUGHT)
    known = reasons()
    used = set()
    rows, wrong = [], []
    for one in sorted(survivors, key=lambda one: (one.function, one.before, one.after)):
        reason = ""
        for index, (function, after, text) in enumerate(known):
            if function.search(one.function) and after.search(one.after):
                used.add(index)
                reason = text
                break
        if not reason:
            wrong.append(f"no reason for {one.function}: {one.after}")
        cells = [one.function, f"`{one.before}`", f"`{one.after}`", reason]
        rows.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    functions = {function_of(name) for name in statuses}
    wrong += [
        f"no function {function.pattern}, remove its entry"
        for function, _, _ in known
        if not any(function.search(name) for name in functions)
    ]
    if len(drawn) == len(statuses):
        wrong += [
            f"fits no survivor: {known[index][1].pattern}"
            for index in range(len(known))
            if index not in used
        ]
    commit = subprocess.run(
        ["git", "describe", "--always", "--dirty"], cwd=ROOT, stdout=subprocess.PIPE, text=True
    ).stdout.strip()
    low, high = binomtest(caught, len(drawn)).proportion_ci()
    listed = ", ".join(f"{count} {status}" for status, count in counts.most_common())
    text = (
        f"# Mutation score\n\nMade by `python -m properties.meta.mutation --sample {len(drawn)} "
        f"--seed {seed}` at commit\n`{commit}`: `mutmut` changes `enorm/` in one place at a time; "
        "the tests (4 examples per property) and\nthe type checker have to notice.\n\n"
        f"**{100 * caught / len(drawn):.1f} %** of {len(drawn)} changes, drawn from "
        f"{len(statuses)}, are noticed (95 % interval {100 * low:.1f} to {100 * high:.1f} %; "
        f"{listed}).\n\n## What survives\n\n"
        "| function | was | became | why no test can or should tell |\n| --- | --- | --- | --- |\n"
    )
    return text + "\n".join(rows) + "\n", wrong


def main() -> int:
    """Run, write the page; 1 if a survivor has no reason or a reason no survivor."""
    parser = argparse.ArgumentParser(prog="python -m properties.meta.mutation")
    parser.add_argument("--sample", type=int, default=400, help="so many changes; 0: all")
    parser.add_argument("--seed", type=int, default=0, help="of the sample")
    parser.add_argument("--page-only", action="store_true", help="from the results that are there")
    options = parser.parse_args()
    if not options.page_only:
        # The names are known once mutmut made the mutants, which it does also where no name fits.
        run("none", quiet=True)
    statuses = results()
    if not statuses:
        print("mutmut made no changes: `python -m mutmut run` says why", file=sys.stderr)
        return 2
    drawn = sample(statuses, options.sample, options.seed)
    untried = [name for name in drawn if statuses[name] == "not checked"]
    if untried and not options.page_only:
        run(*untried)
        statuses = results()
    if missing := sum(statuses[name] == "not checked" for name in drawn):
        print(f"{missing} of the sample's {len(drawn)} changes were not tried", file=sys.stderr)
        return 2
    alive = [survivor(name) for name in drawn if statuses[name] == "survived"]
    text, wrong = page(statuses, drawn, alive, options.seed)
    PAGE.write_text(text)
    print(f"written: {PAGE}")
    print("\n".join(wrong), file=sys.stderr)
    return bool(wrong)


if __name__ == "__main__":
    sys.exit(main())
