"""The speed gate's decisions and its ways to fail; how fast anything is stands in docs/."""

from __future__ import annotations

import random
import subprocess
import sys
from pathlib import Path

import pytest

from asv_benchmarks import gate
from asv_benchmarks.gate import NotMeasuredError, Outcome, compare, exit_status, lay_out, main

QUICK = "balance, fc-9"


def quotients(level: float, noise: float, rounds: int = 15) -> tuple[float, ...]:
    generator = random.Random(1)
    return tuple(level * generator.lognormvariate(0, noise) for _ in range(rounds))


@pytest.mark.parametrize(
    ("level", "noise", "verdict"),
    [
        (1.0, 0.0, "as fast"),
        (1.0, 0.1, "as fast"),
        (1.0, 0.5, "undecided"),
        (0.5, 0.1, "as fast"),
        (2.0, 0.0, "slower"),
        (2.0, 0.2, "slower"),
        (1.2, 0.0, "as fast"),
        (1.3, 0.0, "slower"),
        (1.3, 0.5, "undecided"),
    ],
)
def test_slower_than_noise_explains(level: float, noise: float, verdict: str) -> None:
    assert Outcome("x", quotients(level, noise)).verdict == verdict


def test_the_limit_is_an_order_statistic() -> None:
    """P(Bin(15, ½) ≤ 2) = 0.004 and ≤ 3 is 0.018: the third of fifteen is the 99 % limit."""
    assert Outcome("x", tuple(map(float, range(1, 16)))).at_least == 3
    assert Outcome("x", tuple(map(float, range(1, 16)))).at_most == 13
    assert Outcome("x", tuple(map(float, range(1, 8)))).at_least == 1


def test_exit_status() -> None:
    fine, slow = Outcome("x", quotients(1, 0)), Outcome("x", quotients(2, 0))
    broken = Outcome("x", (), error="no")
    new = Outcome("x", (), missing="no such solver")
    few = Outcome("x", quotients(1, 0, gate.FEWEST_ROUNDS - 1))
    assert exit_status([fine, new]) == 0
    assert exit_status([Outcome("x", quotients(1.3, 0.5))]) == 0
    assert exit_status([fine, slow]) == 1
    for outcomes in ([], [new], [broken, slow], [few]):
        assert exit_status(outcomes) == 2


def test_two_versions_are_measured(tmp_path: Path) -> None:
    """The same version twice, as whole processes; each answers for its own copy."""
    here, base = lay_out(tmp_path / "here", None), lay_out(tmp_path / "base", None)
    (outcome,) = compare(here, base, [QUICK], 2)
    assert len(outcome.quotients) == 2
    assert outcome.error is None
    assert outcome.verdict == "broken"


def test_a_version_that_cannot_be_imported_is_broken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Here as in the base; the gate itself needs nothing of it."""
    copied = lay_out(tmp_path / "copied", None)
    with (copied / "enorm" / "__init__.py").open("a") as file:
        file.write("\nimport not_there\n")
    monkeypatch.setattr(gate, "ROOT", copied)
    monkeypatch.setattr(gate, "base_commit", lambda given: None)
    assert main(["--rounds", "7", "--subjects", QUICK]) == 2
    assert (
        "speed gate: the measuring process ended: see its message above" in capfd.readouterr().err
    )
    done = subprocess.run(
        [sys.executable, "-m", "asv_benchmarks.gate", "--base", "none"],
        cwd=copied,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2
    assert "Traceback" not in done.stderr


def test_what_one_version_lacks(tmp_path: Path) -> None:
    """Here it is broken; in the base, this version has something new."""
    here, base = lay_out(tmp_path / "here", None), lay_out(tmp_path / "base", None)
    with (here / "enorm" / "__init__.py").open("a") as file:
        file.write("\ndel balance_\n")
    (outcome,) = compare(here, base, [QUICK], 2)
    assert outcome.verdict == "broken"
    assert "balance_" in str(outcome)
    (outcome,) = compare(base, here, [QUICK], 2)
    assert outcome.verdict == "new"


def test_what_rescales_nothing_is_broken_and_what_prints_is_not(tmp_path: Path) -> None:
    """However fast the one is, and whatever the other says."""
    idle, loud = lay_out(tmp_path / "idle", None), lay_out(tmp_path / "loud", None)
    with (idle / "enorm" / "__init__.py").open("a") as file:
        file.write("\ndef balance_(*_, **__): pass\n")
    with (loud / "enorm" / "__init__.py").open("a") as file:
        file.write(
            "\n_quiet = balance_\ndef balance_(*a, **k): print('{}'); return _quiet(*a, **k)\n"
        )
    (outcome,) = compare(idle, loud, [QUICK], 2)
    assert outcome.error == "RuntimeError: it rescales nothing"
    (outcome,) = compare(loud, loud, [QUICK], 1)
    assert len(outcome.quotients) == 1


def test_a_version_that_answers_something_else_is_broken(tmp_path: Path) -> None:
    here = lay_out(tmp_path / "here", None)
    with (here / "enorm" / "__init__.py").open("a") as file:
        file.write("\nprint('hello')\n")
    with pytest.raises(NotMeasuredError, match="the measuring process answered 'hello"):
        compare(here, here, [QUICK], 1)


@pytest.mark.parametrize("dies", ["here", "base"])
def test_a_process_that_ends_is_broken(tmp_path: Path, dies: str) -> None:
    """Whichever: a base that cannot answer is not one that lacks a subject."""
    folders = {name: lay_out(tmp_path / name, None) for name in ("here", "base")}
    with (folders[dies] / "enorm" / "__init__.py").open("a") as file:
        file.write("\nimport os\ndef balance_(*_, **__): os._exit(1)\n")
    with pytest.raises(NotMeasuredError, match="ended"):
        compare(folders["here"], folders["base"], [QUICK], 2)


def test_what_the_base_could_run_once_is_not_new() -> None:
    assert Outcome("x", (), missing="no such subject").verdict == "new"
    assert Outcome("x", quotients(1, 0), missing="out of memory").verdict == "broken"


def test_a_version_that_does_not_import_is_broken(tmp_path: Path) -> None:
    here = lay_out(tmp_path / "here", None)
    (here / "enorm" / "__init__.py").write_text("raise ImportError('planted')\n")
    with pytest.raises(NotMeasuredError, match="ended"):
        compare(here, here, [QUICK], 1)


def test_no_history_is_broken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """An unknown commit, a shallow clone, no main branch: one sentence and status 2."""

    def git(*arguments: str, cwd: Path) -> None:
        identity = ["-c", "user.name=x", "-c", "user.email=x@example.org"]
        subprocess.run(["git", *identity, *arguments], cwd=cwd, check=True, capture_output=True)

    source = tmp_path / "source"
    source.mkdir()
    git("init", "-b", "trunk", cwd=source)
    for text in ("one", "two"):
        git("commit", "--allow-empty", "-m", text, cwd=source)
    git("clone", "--depth", "1", source.as_uri(), "shallow", cwd=tmp_path)
    for folder, arguments, message in (
        (source, ["--base", "nonsense"], "nonsense"),
        (source, [], "none of origin/main, main is there"),
        (tmp_path / "shallow", [], "shallow"),
    ):
        monkeypatch.setattr(gate, "ROOT", folder)
        assert main(arguments) == 2
        assert message in capsys.readouterr().err
    git("branch", "main", cwd=source)
    monkeypatch.setattr(gate, "ROOT", source)
    first = subprocess.run(
        ["git", "rev-parse", "main^"], cwd=source, check=True, capture_output=True, text=True
    )
    assert gate.base_commit(None) == first.stdout.strip()
    (source / "enorm").mkdir()
    (source / "enorm" / "new.py").touch()
    assert gate.base_commit(None) == gate.base_commit("main")
    monkeypatch.setenv("PATH", str(tmp_path))
    assert main([]) == 2
    assert "git cannot be run" in capsys.readouterr().err
