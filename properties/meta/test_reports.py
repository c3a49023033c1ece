"""What a run says: of known failures, of what does not apply, and of how to see a failure again."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from properties import replay, table
from properties.meta.mutants import MUTANTS, plant
from properties.meta.project import ROOT, copy_to, run_suite

# An adapter that declares to scale biases and does not.
LIAR = """
import copy
from properties.adapters import plain

class Liar(plain.Plain):
    name = "liar"

    def stepper(self, model, optimizer, *, p, c, order, batchnorm):
        def step():
            kept = copy.deepcopy(model).state_dict()
            plain.cycle_(model, p, c)
            biases = {name: value for name, value in kept.items() if name.endswith("bias")}
            model.load_state_dict(biases, strict=False)
        return step

def load(path):
    return Liar()
"""

# Functions that give no implementation, or one that declares what cannot be.
BROKEN = """
from properties.adapters.plain import Plain
from properties.implementation import Capabilities

def declaring(**declared):
    def load(path):
        found = Plain()
        found.capabilities = Capabilities(**declared)
        return found
    return load

nothing = lambda path: None
text = declaring(momentum="SGD")
typo = declaring(dtypes=("float64", "bfloat61"))
empty = declaring(orders=())
boasting = declaring(solvers=("sor",))
infinite = declaring(p=(2.0, float("inf")))
twice = declaring(orders=("cyclic", "cyclic"))
unnamed = declaring(solvers=("",))

class Odd(Plain):
    def stepper(self, model, p):
        pass

class Raising(Plain):
    @property
    def capabilities(self):
        raise ValueError("not yet")

kind = lambda path: Plain
odd = lambda path: Odd()
raising = lambda path: Raising()
leaving = lambda path: exit("by the way")
"""


def entry(property_id: str, implementation: str = "enorm") -> str:
    fields = {
        "implementation": implementation,
        "property": property_id,
        "reason": "said so by a test",
        "link": "none",
    }
    return "\n[[failure]]\n" + "".join(f'{name} = "{text}"\n' for name, text in fields.items())


@pytest.fixture
def copied(tmp_path: Path) -> Path:
    copy_to(tmp_path)
    return tmp_path


def test_an_entry_that_matches_nothing_fails_the_run(copied: Path) -> None:
    known = copied / "properties" / "known_failures.toml"
    known.write_text(known.read_text() + entry("test_edges.py::test_that_was_renamed"))
    done = run_suite(copied, "properties/test_edges.py")
    assert done.returncode == pytest.ExitCode.USAGE_ERROR
    assert "no property is called test_edges.py::test_that_was_renamed" in done.stderr
    known.write_text(
        known.read_text().replace("test_edges.py::test_that", "test_edge.py::test_that")
    )
    done = run_suite(copied, "properties/test_edges.py::test_width_one_depth_one")
    assert "no property is called test_edge.py::test_that_was_renamed" in done.stderr


def test_a_known_failure_that_passes_fails_the_run(copied: Path) -> None:
    known = copied / "properties" / "known_failures.toml"
    known.write_text(known.read_text() + entry("test_edges.py::test_width_one_depth_one"))
    done = run_suite(copied, "properties/test_edges.py::test_width_one_depth_one")
    assert done.returncode == pytest.ExitCode.TESTS_FAILED
    assert "XPASS(strict)" in done.stdout


def test_a_declared_capability_that_fails_is_a_failure(copied: Path) -> None:
    (copied / "liar.py").write_text(LIAR)
    chosen = ("--enorm-impl=liar:load", "--enorm-report=report.json")
    done = run_suite(copied, *chosen, "properties/test_function.py")
    assert done.returncode == pytest.ExitCode.TESTS_FAILED
    assert "implementation: liar 1" in done.stdout
    outcomes = json.loads((copied / "report.json").read_text())["outcomes"]
    assert outcomes["test_function.py::test_cycles_keep_the_function"] == "failed"
    assert outcomes["test_function.py::test_balance_keeps_the_function"] == "not applicable"
    assert f"liar: {len(outcomes)} properties" in done.stdout
    assert "4 not applicable" in done.stdout


@pytest.mark.parametrize(
    ("chosen", "message"),
    [
        ("nowhere:load", "No module named 'nowhere'"),
        ("properties.adapters.plain:nothing", "has no attribute 'nothing'"),
        ("properties.adapters.authors:load", "give --enorm-impl-path"),
        ("properties.adapters.plain", "names no MODULE:ATTRIBUTE"),
        ("", "is empty"),
        ("broken:syntax", "SyntaxError"),
        ("broken:nothing", "its capabilities are no Capabilities"),
        ("broken:text", "capability momentum must be a tuple, got 'SGD'"),
        ("broken:typo", "capability dtypes holds 'bfloat61'"),
        ("broken:empty", "capability orders is empty"),
        ("broken:boasting", "it has no method balance"),
        ("broken:infinite", "capability p must hold finite numbers above 0"),
        ("broken:twice", "capability orders holds something twice"),
        ("broken:unnamed", "capability solvers must hold names"),
        ("broken:kind", "load returned the class Plain"),
        ("broken:odd", "method stepper cannot be called as it has to be"),
        ("broken:raising", "ValueError: not yet"),
        ("broken:leaving", "SystemExit: by the way"),
    ],
)
def test_an_implementation_that_cannot_be_loaded_is_one_sentence(
    copied: Path, chosen: str, message: str
) -> None:
    (copied / "broken.py").write_text("(" if chosen == "broken:syntax" else BROKEN)
    done = run_suite(copied, f"--enorm-impl={chosen}", "properties/test_edges.py")
    assert done.returncode == pytest.ExitCode.USAGE_ERROR
    (line,) = done.stderr.strip().splitlines()
    assert message in line


def test_another_implementation_is_not_asked_about_the_suite(copied: Path) -> None:
    """Its run holds the properties alone, also where the other folder is named."""
    other = "--enorm-impl=properties.adapters.plain:load"
    done = run_suite(copied, other, "--collect-only", "properties")
    assert "properties/test_function.py::test_cycles_keep_the_function" in done.stdout
    assert "properties/meta" not in done.stdout
    done = run_suite(copied, other, "--collect-only", "properties/meta")
    assert "no tests collected" in done.stdout


@pytest.mark.parametrize("report", ["", ".", "nowhere/report.json"])
def test_a_report_without_a_place_is_told_first(copied: Path, report: str) -> None:
    chosen = "properties/test_edges.py::test_width_one_depth_one"
    done = run_suite(copied, f"--enorm-report={report}", chosen)
    assert done.returncode == pytest.ExitCode.USAGE_ERROR
    (line,) = done.stderr.strip().splitlines()
    assert f"--enorm-report={report} is no file" in line


def reported(folder: Path, *words: str) -> dict[str, str]:
    chosen = ("--enorm-report=report.json", "-k", "width_one or dead_units_are_left")
    done = run_suite(folder, *chosen, *words, profile="mutation")
    assert done.returncode == pytest.ExitCode.OK, done.stdout + done.stderr
    assert "2 properties, 2 passed" in done.stdout
    outcomes: dict[str, str] = json.loads((folder / "report.json").read_text())["outcomes"]
    return outcomes


def test_a_report_is_whole_however_the_suite_is_run(copied: Path) -> None:
    """From the folder above, which is where its conftest.py is read last, and in two processes."""
    pytest.importorskip("xdist", reason="pytest-xdist is not installed")
    outcomes = reported(copied, ".")
    assert set(outcomes.values()) == {"passed"}
    assert reported(copied, "--numprocesses=2", "properties/test_edges.py") == outcomes


def test_collecting_reports_nothing(copied: Path) -> None:
    run_suite(copied, "--enorm-report=report.json", "--collect-only", "properties/test_edges.py")
    assert not (copied / "report.json").exists()


@pytest.mark.parametrize("way", ["option", "environment"])
def test_a_profile_that_is_none_is_one_sentence(copied: Path, way: str) -> None:
    options = ["--hypothesis-profile=fast"] if way == "option" else []
    profile = "dev" if way == "option" else "fast"
    done = run_suite(copied, *options, "properties/test_edges.py", profile=profile)
    assert done.returncode == pytest.ExitCode.USAGE_ERROR
    (line,) = done.stderr.strip().splitlines()
    assert "no Hypothesis profile 'fast'" in line


def test_a_failure_replays_from_its_output_alone(tmp_path: Path) -> None:
    """In the broken copy the command fails with the same numbers; here the property holds."""
    plant(next(mutant for mutant in MUTANTS if mutant.name == "bias not scaled"), tmp_path)
    done = run_suite(tmp_path, "properties/test_function.py", "-k", "cycles_keep")
    assert done.returncode == pytest.ExitCode.TESTS_FAILED
    for word in ("dtype: ", "device: cpu", "seed: ", "bound ", "network: Net("):
        assert word in done.stdout
    lines = done.stdout.splitlines()
    (line,) = [line for line in lines if line.startswith("python -m properties.replay")]
    words = shlex.split(line)
    measured = next(text for text in lines if "error of the function: " in text)
    for folder, code in ((tmp_path, 1), (ROOT, 0)):
        again = subprocess.run(
            [sys.executable, *words[1:]], cwd=folder, capture_output=True, text=True
        )
        assert again.returncode == code, again.stderr
        if code:
            assert again.stderr.splitlines()[0] in measured


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["test_edges.py::test_nothing", "p=1"], "no property of drawn examples"),
        (["nothing.py::test_nothing", "p=1"], "nothing.py is no file"),
        (["test_function.py::test_cycles_keep_the_function", "p=("], "never closed"),
        (["test_function.py::test_cycles_keep_the_function", "p=Nets()"], "not defined"),
        (["one"], "python -m properties.replay"),
    ],
)
def test_wrong_replays(words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert replay.main(words) == 2
    assert message in capsys.readouterr().err


def test_arguments_that_are_no_literals() -> None:
    name = "test_edges.py::test_units_without_a_finite_norm_are_left_alone"
    net = "net=Net(inputs=2, hidden=(Hidden(out=3),) * 2, dtype='float64')"
    for value in ("inf", "-inf", "nan"):
        words = f"{net}, p=2.0, c=1.0, order='cyclic', seed=0, value={value}"
        assert replay.main([name, words]) == 0


def test_a_failure_without_words_says_where(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fails() -> None:
        raise AssertionError

    monkeypatch.setattr(replay, "prepared", lambda *_: fails)
    assert replay.main(["file", "arguments"]) == 1
    error = capsys.readouterr().err
    assert "test_reports.py:" in error
    assert "raise AssertionError" in error


def test_an_error_of_the_implementation_is_shown_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails() -> None:
        raise ValueError("shapes do not match")

    monkeypatch.setattr(replay, "prepared", lambda *_: fails)
    with pytest.raises(ValueError, match="shapes"):
        replay.main(["file", "arguments"])


def test_replay_takes_what_hypothesis_notes() -> None:
    """Comments and line breaks go; strings keep their quotes; other notes are passed over."""
    notes = [
        "Explanation: none",
        "Falsifying example: test_it(\n    # both vary\n    net=Net(inputs=1, hidden=()),\n"
        "    order='cyclic',  # or any other generated value\n)\nand more",
    ]
    expected = "python -m properties.replay test_x.py::test_it "
    assert replay.command("test_x.py::test_it", notes) == (
        replay.implementation_choice()
        + expected
        + "\"net=Net(inputs=1, hidden=()), order='cyclic'\""
    )
    assert replay.command("test_x.py::test_other", notes) is None


def test_a_report_of_a_part_is_no_page() -> None:
    every = dict.fromkeys(table.properties(), "passed")
    report = {"implementation": "mine", "version": "1", "capabilities": {}, "outcomes": every}
    assert "mine 1" in table.render([report])
    some = {**report, "outcomes": dict(list(every.items())[1:])}
    with pytest.raises(ValueError, match=rf"of mine lacks 1 of {len(every)} properties, as test_"):
        table.render([some])
    more = {**report, "outcomes": {**every, "test_x.py::test_y": "passed"}}
    with pytest.raises(ValueError, match=r"of mine has others, as test_x\.py::test_y"):
        table.render([more])
