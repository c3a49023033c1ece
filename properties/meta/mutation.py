"""Mutation score of ``enorm/``: ``python -m properties.meta.mutation``, an hour on two cores.

``mutmut`` changes one operator, constant, argument or message at a time; the tests and the type
checker, which CI both runs, should notice. What survives is listed with a reason.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tomllib
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

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
    # enorm._solve.xǁScalesǁcycle__mutmut_3 is Scales.cycle in _solve, enorm._solve.x__cap__mutmut_1
    # is _cap.
    path, mangled = name.removeprefix("enorm.").rsplit(".", 1)
    function = mangled.rsplit("__mutmut_", 1)[0].removeprefix("xǁ").removeprefix("x_")
    return Survivor(f"{path}.{function.replace('ǁ', '.')}", before, after)


def reasons() -> list[tuple[re.Pattern[str], re.Pattern[str], str]]:
    """Function, change and reason of each entry."""
    entries = tomllib.loads(REASONS.read_text())["survivor"]
    return [
        (re.compile(entry["function"]), re.compile(entry["after"]), entry["reason"])
        for entry in entries
    ]


def page(statuses: dict[str, str], survivors: list[Survivor]) -> tuple[str, list[str]]:
    """The page, and what is wrong with the reasons: one that is missing, or that fits nothing."""
    counts = Counter(statuses.values())
    tried = len(statuses) - counts["not checked"]
    caught = sum(counts[status] for status in _CAUGHT)
    known = reasons()
    used = set()
    rows, wrong = [], []
    for one in sorted(survivors, key=lambda one: one.function):
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
    wrong += [
        f"fits no survivor: {known[index][1].pattern}"
        for index in range(len(known))
        if index not in used
    ]
    commit = subprocess.run(
        ["git", "describe", "--always", "--dirty"], cwd=ROOT, stdout=subprocess.PIPE, text=True
    ).stdout.strip()
    listed = ", ".join(f"{count} {status}" for status, count in counts.most_common())
    text = (
        f"# Mutation score\n\nMade by `python -m properties.meta.mutation` at commit `{commit}`: "
        "`mutmut`\nchanges `enorm/` in one place at a time; the tests (4 examples per "
        "property) and the type\n"
        f"checker have to notice.\n\n**{100 * caught / tried:.1f} %** of {tried} changes are "
        f"noticed ({listed}).\n\n## What survives\n\n"
        "| function | was | became | why no test can or should tell |\n| --- | --- | --- | --- |\n"
    )
    return text + "\n".join(rows) + "\n", wrong


def main() -> int:
    """Run, write the page; 1 if a survivor has no reason or a reason no survivor."""
    parser = argparse.ArgumentParser(prog="python -m properties.meta.mutation")
    parser.add_argument("--page-only", action="store_true", help="from the results that are there")
    options = parser.parse_args()
    if not options.page_only:
        subprocess.run(
            [sys.executable, "-m", "mutmut", "run", f"--max-children={os.cpu_count()}"],
            cwd=ROOT,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            check=True,
        )
    statuses = results()
    alive = [name for name, status in statuses.items() if status == "survived"]
    text, wrong = page(statuses, [survivor(name) for name in alive])
    PAGE.write_text(text)
    print(f"written: {PAGE}")
    print("\n".join(wrong), file=sys.stderr)
    return bool(wrong)


if __name__ == "__main__":
    sys.exit(main())
