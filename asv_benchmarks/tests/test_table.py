"""What the table says before it measures anything."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from asv_benchmarks import convergence, gate_check, table, training
from asv_benchmarks.gate import Outcome
from repro import options as options_of


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ("--nets foo", "'foo' is none of fc-1,"),
        ("--rounds 0", "--rounds: must be at least 1, got 0"),
        ("--passes 0", "--passes: must be at least 1, got 0"),
        ("--authors nowhere", "nowhere"),
        ("--out file", "file"),
        ("--out /proc", "/proc"),
        ("--json .", "argument --json: . is a folder"),
        ("--json=", "argument --json: is empty"),
        ("--json shares.json --nets vgg", "--json needs a fully connected network"),
        ("--device cuda", "torch sees no GPU here"),
    ],
)
def test_wrong_options_are_one_sentence(
    options: str,
    words: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["table", *options.split()])
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit) as stopped:
        table.main()
    assert stopped.value.code == 2
    assert words in capsys.readouterr().err.splitlines()[-1]


def test_no_runs_check_nothing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["gate_check", "--runs", "0"])
    with pytest.raises(SystemExit):
        gate_check.main()
    assert "--runs: must be at least 1, got 0" in capsys.readouterr().err


@pytest.mark.parametrize("words", ["--depths 0", "--rounds 0", "--out file"])
def test_convergence_is_asked_for_something(
    words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """What cannot be done is told before anything is measured."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").touch()
    monkeypatch.setattr(sys, "argv", ["convergence", *words.split()])
    with pytest.raises(SystemExit):
        convergence.main()
    assert f"error: argument {words.split()[0]}: " in capsys.readouterr().err


def test_pictures_need_matplotlib(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """Which is told before anything is measured."""
    monkeypatch.setattr(options_of, "find_spec", lambda name: None)
    for module in (convergence, training):
        monkeypatch.setattr(sys, "argv", ["module", "--out", str(tmp_path)])
        with pytest.raises(SystemExit):
            module.main()
        assert "--out: needs matplotlib: pip install -e '.[repro]'" in capsys.readouterr().err


def test_images_that_are_not_there(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["training", "--data", "nowhere"])
    with pytest.raises(SystemExit):
        training.main()
    assert "error: --data nowhere has no folder train/" in capsys.readouterr().err


def test_a_table_needs_no_test_runner() -> None:
    """The benchmarks' extra does not have one."""
    code = "import sys; sys.modules['pytest'] = None; import asv_benchmarks.table"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_gate_that_measures_nothing_still_gets_its_page(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(here: Path, base: Path, subjects: Sequence[str], rounds: int) -> list[Outcome]:
        return [Outcome(one, (), error="no") for one in subjects]

    monkeypatch.setattr(gate_check, "compare", broken)
    monkeypatch.setattr(sys, "argv", ["gate_check", "--runs", "1", "--out", str(tmp_path)])
    assert gate_check.main() == 1
    assert "| cycle, fc-9 | 1 | 1 | 0 | nan | nan |" in (tmp_path / "speed-gate.md").read_text()
