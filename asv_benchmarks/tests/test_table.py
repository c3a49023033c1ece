"""What the table says before it measures anything."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

from asv_benchmarks import convergence, gate_check, table


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ("--nets foo", "'foo' is none of fc-1,"),
        ("--rounds 0", "--rounds: must be at least 1, got 0"),
        ("--passes 0", "--passes: must be at least 1, got 0"),
        ("--authors nowhere", "nowhere"),
        ("--out file", "file"),
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
