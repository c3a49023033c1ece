"""``python -m asv_benchmarks.gate``: is this version of ``enorm`` slower than the one it left?

The working tree and a base commit (the merge base with the main branch; on that branch the commit
before, or the last one where ``enorm/`` has changes that are not committed) are each measured by a
process of their own, in turn, round by round. A subject's time is the shortest of some repetitions,
for what else runs on the machine only ever adds to one; the round's quotient of both versions,
which are measured one right after the other, then says how much slower this one is. A process may
be slow from its start to its end, by where its memory and its threads came to lie, so new ones take
over every few rounds. Exit status: 1 slower, 2 broken (something could not be measured, or rescales
nothing), else 0.

A subject is slower when the lower 99 % confidence limit of the median quotient (an order statistic;
Hahn and Meeker 1991, §5.2) is above ``1 + TOLERATED``, as fast when the upper limit is not, and
else undecided: noise is no reason to fail, nor is what the base cannot run, which is new. The
limits take rounds for independent, which those of one pair of processes are not quite.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Literal, Self

from scipy import stats
from tqdm import tqdm

from asv_benchmarks.subjects import SUBJECTS
from repro.options import within

ROOT = Path(__file__).parents[1]
TOLERATED = 0.25
CONFIDENCE = 0.99
# How many processes of each version share the rounds: one odd pair of five moves no median much.
PAIRS = 5
# Fewer give no bound on the median at that confidence.
FEWEST_ROUNDS = 7
_BRANCHES = ("origin/main", "main")

Verdict = Literal["as fast", "undecided", "slower", "broken", "new"]


class NotMeasuredError(Exception):
    """Nothing can be said about speed; the message says why."""


class UnableError(NotMeasuredError):
    """A version answered that it cannot run a subject."""


@dataclass(frozen=True)
class Outcome:
    """One subject: quotients of this version and the base, round by round.

    Attributes:
        error: why this version could not be measured.
        missing: why the base could not be.
    """

    subject: str
    quotients: tuple[float, ...]
    error: str | None = None
    missing: str | None = None

    @property
    def median(self) -> float:
        """How many times as long this version takes."""
        return statistics.median(self.quotients)

    @property
    def at_least(self) -> float:
        """Lower confidence limit of the median."""
        return sorted(self.quotients)[self._from_end]

    @property
    def at_most(self) -> float:
        """Upper confidence limit of the median."""
        return sorted(self.quotients, reverse=True)[self._from_end]

    @property
    def _from_end(self) -> int:
        below = int(stats.binom.ppf(1 - CONFIDENCE, len(self.quotients), 0.5))
        return max(0, below - 1)

    @property
    def verdict(self) -> Verdict:
        """What the exit status is made of."""
        # What the base could run before is not new.
        if self.error is None and self.missing is not None and not self.quotients:
            return "new"
        failed = self.error is not None or self.missing is not None
        if failed or len(self.quotients) < FEWEST_ROUNDS:
            return "broken"
        if self.at_least > 1 + TOLERATED:
            return "slower"
        return "as fast" if self.at_most <= 1 + TOLERATED else "undecided"

    def __str__(self) -> str:
        if self.verdict in ("broken", "new"):
            why = self.error or self.missing or f"{FEWEST_ROUNDS} rounds are the fewest"
            return f"{self.verdict:9} {self.subject}: {why}"
        return (
            f"{self.verdict:9} {self.subject}: {self.median:.3f} × the base "
            f"({self.at_least:.3f} to {self.at_most:.3f}, {len(self.quotients)} rounds)"
        )


def exit_status(outcomes: Sequence[Outcome]) -> int:
    """2 if anything is broken or nothing was compared, else 1 if anything is slower, else 0."""
    verdicts = {outcome.verdict for outcome in outcomes}
    if "broken" in verdicts or not verdicts & {"as fast", "undecided", "slower"}:
        return 2
    return int("slower" in verdicts)


class Worker:
    """A process that measures the version in ``folder``."""

    def __init__(self, folder: Path) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "asv_benchmarks.worker"],
            cwd=folder,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        try:
            loaded = Path(str(self._answer()["enorm"]))
            if not loaded.is_relative_to(folder):
                raise NotMeasuredError(f"{folder} was to be measured, and {loaded} was loaded")
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def seconds(self, subject: str) -> float:
        """The shortest of its times.

        Raises:
            UnableError: this version cannot run it.
            NotMeasuredError: the process ended.
        """
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(subject + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            raise NotMeasuredError("the measuring process ended") from None
        answer = self._answer()
        if "error" in answer:
            raise UnableError(str(answer["error"]))
        seconds = float(str(answer["seconds"]))
        if not seconds > 0:
            raise NotMeasuredError(f"{seconds} seconds were measured")
        return seconds

    def close(self) -> None:
        """End the process."""
        self._process.terminate()
        self._process.communicate()

    def _answer(self) -> Mapping[str, object]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise NotMeasuredError("the measuring process ended: see its message above")
        try:
            answer: Mapping[str, object] = json.loads(line)
        except ValueError:
            raise NotMeasuredError(f"the measuring process answered {line!r}") from None
        return answer


def compare(here: Path, base: Path, subjects: Sequence[str], rounds: int) -> list[Outcome]:
    """Measure both versions in turn.

    Args:
        here: folder with ``enorm/`` and ``asv_benchmarks/`` of this version.
        base: the same with the base's ``enorm/``.
        subjects: keys of :data:`asv_benchmarks.subjects.SUBJECTS`.
        rounds: quotients per subject.

    Raises:
        NotMeasuredError: a process ended before its time.
    """
    order = random.Random(0)
    quotients: dict[str, list[float]] = {subject: [] for subject in subjects}
    errors: dict[str, str] = {}
    missing: dict[str, str] = {}
    with tqdm(total=rounds * len(subjects), unit="round", mininterval=5) as progress:
        for pair in range(min(PAIRS, rounds)):
            with Worker(here) as mine, Worker(base) as theirs:
                for subject in [one for one in subjects for _ in range(pair, rounds, PAIRS)]:
                    progress.update()
                    if subject in errors or subject in missing:
                        continue
                    found: dict[Worker, float] = {}
                    # Neither version always comes first.
                    for worker, failed in order.sample([(mine, errors), (theirs, missing)], 2):
                        try:
                            found[worker] = worker.seconds(subject)
                        except UnableError as error:
                            failed[subject] = str(error)
                    if len(found) == 2:
                        quotients[subject].append(found[mine] / found[theirs])
    return [
        Outcome(one, tuple(quotients[one]), errors.get(one), missing.get(one)) for one in subjects
    ]


def base_commit(given: str | None) -> str:
    """The commit to compare with.

    Raises:
        NotMeasuredError: git cannot say, as in a shallow clone.
    """
    head = _git("rev-parse", "HEAD")
    if given is not None:
        return _git("rev-parse", "--verify", f"{given}^{{commit}}")
    if _git("rev-parse", "--is-shallow-repository") == "true":
        raise NotMeasuredError(
            "this clone is shallow, so its history is not there: fetch it, or give --base"
        )
    for branch in _BRANCHES:
        try:
            base = _git("merge-base", "HEAD", branch)
        except NotMeasuredError:
            continue
        # What is not committed yet is compared with what is.
        if base == head and not _git("status", "--porcelain", "enorm"):
            return _git("rev-parse", "HEAD^")
        return base
    raise NotMeasuredError(f"none of {', '.join(_BRANCHES)} is there: give --base")


def lay_out(folder: Path, commit: str | None) -> Path:
    """``enorm/`` of a commit, or of the working tree, beside these benchmarks."""
    folder.mkdir()
    shutil.copytree(ROOT / "asv_benchmarks", folder / "asv_benchmarks")
    if commit is None:
        shutil.copytree(ROOT / "enorm", folder / "enorm")
        return folder
    archive = folder / "enorm.tar"
    _git("archive", f"--output={archive}", commit, "enorm")
    shutil.unpack_archive(archive, folder, filter="data")
    archive.unlink()
    return folder


def _git(*arguments: str) -> str:
    try:
        done = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True)
    except OSError as error:
        raise NotMeasuredError(f"git cannot be run ({error})") from None
    if done.returncode:
        raise NotMeasuredError(f"git {' '.join(arguments)}: {done.stderr.strip()}")
    return done.stdout.strip()


def main(arguments: Sequence[str] | None = None) -> int:
    """Compare and print; the exit status."""
    parser = argparse.ArgumentParser(prog="python -m asv_benchmarks.gate", description=__doc__)
    parser.add_argument("--base", metavar="COMMIT", help="compare with this commit")
    parser.add_argument(
        "--rounds", type=within(FEWEST_ROUNDS), default=15, help="per subject (default: 15)"
    )
    parser.add_argument(
        "--subjects",
        nargs="+",
        choices=list(SUBJECTS),
        default=list(SUBJECTS),
        metavar="SUBJECT",
        help=f"of {', '.join(map(repr, SUBJECTS))} (default: all)",
    )
    options = parser.parse_args(arguments)
    try:
        with tempfile.TemporaryDirectory() as name:
            root = Path(name).resolve()
            commit = base_commit(options.base)
            here, base = lay_out(root / "here", None), lay_out(root / "base", commit)
            outcomes = compare(here, base, options.subjects, options.rounds)
    except NotMeasuredError as error:
        print(f"speed gate: {error}", file=sys.stderr)
        return 2
    print(f"speed gate: the working tree beside {commit[:12]}")
    for outcome in outcomes:
        print(outcome)
    if unsure := sum(outcome.verdict == "undecided" for outcome in outcomes):
        print(
            f"speed gate: {unsure} of {len(outcomes)} undecided, which fails nothing: to know, "
            "measure on a quieter machine or with more --rounds"
        )
    return exit_status(outcomes)


if __name__ == "__main__":
    # So that who ends this process ends those that it has started.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    sys.exit(main())
