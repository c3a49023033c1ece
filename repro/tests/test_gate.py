"""The gate: what it lets pass, what it stops, and that it stops a broken cycle."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from enorm import _apply, _stepper
from repro import figure2, gate, page, records, table
from repro.claims import Verdict
from repro.data import Images
from repro.experiments import FIGURE2
from repro.records import Record
from repro.spec import PRESETS, Preset, RunSpec
from repro.sweep import run_all

TINY = Preset("tiny", (1, 3), 3, 2, 600, "synthetic")


@pytest.fixture(scope="module")
def known(images: Images, tmp_path_factory: pytest.TempPathFactory) -> list[Record]:
    """Runs of ENorm and Baseline that take a second each."""
    folder = tmp_path_factory.mktemp("known")
    specs = FIGURE2.specs(TINY, range(3), None, ["enorm", "baseline"])
    return run_all(specs, images, folder, torch.device("cpu"))


def test_the_same_runs_pass(known: list[Record]) -> None:
    assert gate.compare(known, known) == (4, [])
    # Other seeds, or another machine, within the interval.
    elsewhere = [moved(record, 0.0, threads=64) for record in known[:4]]
    assert gate.compare(elsewhere, known) == (4, [])


def moved(record: Record, points: float, **environment: object) -> Record:
    """A run whose accuracy is some points higher, made in another environment."""
    result = record.result
    assert result.accuracy is not None
    curve = tuple(
        replace(epoch, test_accuracy=epoch.test_accuracy + points) for epoch in result.curve
    )
    return replace(
        record,
        result=replace(result, accuracy=result.accuracy + points, curve=curve),
        environment={**record.environment, **environment},
    )


def test_another_result_of_the_same_run_is_found_bit_for_bit(known: list[Record]) -> None:
    _, wrong = gate.compare([moved(known[0], 0.05), *known[1:]], known)
    assert wrong == [f"{known[0].file_name} is not the committed run, bit for bit"]
    _, wrong = gate.compare([moved(known[0], 0.05, torch="9.9"), *known[1:]], known)
    assert wrong == [], "other versions may round otherwise"


def test_a_cell_outside_its_interval_is_found(known: list[Record]) -> None:
    """Anywhere; and an interval is no wider than it has to be."""
    low = [
        moved(record, -30.0, torch="9.9") if record.spec.method == "enorm" else record
        for record in known
    ]
    _, wrong = gate.compare(low, known)
    assert [line.split(":")[0] for line in wrong] == ["enorm, depth 1", "enorm, depth 3"]


def test_divergence_where_there_was_none_is_found(known: list[Record]) -> None:
    lost = replace(known[0].result, outcome="diverged", accuracy=None, diverged_at=(0, 3))
    record = replace(known[0], result=lost, environment={**known[0].environment, "torch": "9.9"})
    _, wrong = gate.compare([record, *known[1:]], known)
    assert len(wrong) == 1
    assert "diverged" in wrong[0]


def spoiled(record: Record) -> Record:
    lost = replace(record.result, outcome="diverged", accuracy=None, diverged_at=(0, 3))
    return replace(record, result=lost, environment={**record.environment, "torch": "9.9"})


def test_a_part_of_a_cell_with_both_outcomes_passes(known: list[Record]) -> None:
    """And its finite runs are compared all the same, with another cell's spread if need be."""
    mixed = [spoiled(known[0]), *known[1:]]
    assert gate.compare(mixed, mixed) == (4, [])
    assert gate.compare(mixed[:1], mixed) == (1, [])
    same = [one for one in mixed if one.spec == replace(known[0].spec, seed=1)]
    assert gate.compare(same, mixed) == (1, [])
    _, wrong = gate.compare([moved(same[0], -60.0, torch="9.9")], mixed)
    assert len(wrong) == 1


def test_another_rate_of_divergence_is_found(known: list[Record]) -> None:
    """By chance half of eight may diverge where one of eight did, and not all of them."""

    def cell(lost: int, torch: str) -> list[Record]:
        seeds = [
            replace(known[0], spec=replace(known[0].spec, seed=seed), key=str(seed))
            for seed in range(8)
        ]
        runs = [spoiled(one) if one.spec.seed < lost else one for one in seeds]
        return [replace(one, environment={**one.environment, "torch": torch}) for one in runs]

    assert gate.compare(cell(4, "9.9"), cell(1, "9.8")) == (1, [])
    _, wrong = gate.compare(cell(8, "9.9"), cell(1, "9.8"))
    name = f"{known[0].spec.method}, depth {known[0].spec.depth}"
    assert wrong == [f"{name}: 8 of 8 runs diverged, committed 1 of 8"]


def test_short_runs_are_held_against_short_ones(known: list[Record]) -> None:
    short = [replace(one, spec=replace(one.spec, epochs=1), key=f"{one.key}1") for one in known]
    worse = [moved(one, -60.0) for one in short]
    assert gate.compare(worse, [*known, *worse]) == (4, [])
    assert gate.compare(worse, known) == (0, [])
    cells, wrong = gate.compare([moved(one, 60.0, torch="9.9") for one in worse], [*known, *worse])
    assert (cells, len(wrong)) == (4, 4)


def test_a_cell_of_which_nothing_can_be_said_is_not_counted(known: list[Record]) -> None:
    """One committed run has no spread."""
    far = moved(known[0], -60.0, torch="9.9")
    assert gate.compare([far], known[:1]) == (0, [])


@pytest.fixture
def committed(
    known: list[Record], images: Images, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Path:
    """A preset whose committed runs are the known ones."""
    folder = tmp_path / "committed"
    for record in known:
        records.write(folder / "records", record)
    monkeypatch.setitem(PRESETS, "tiny", TINY)
    monkeypatch.setattr(gate, "committed", lambda preset: folder)
    monkeypatch.setattr("repro.cli.load", lambda source: images)
    return folder


COMMAND = ["--preset", "tiny", "--methods", "enorm", "baseline", "--seeds", "2", "--gate", "--out"]


@pytest.mark.usefixtures("committed")
def test_an_unchanged_project_passes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert figure2.main([*COMMAND, str(tmp_path / "out")]) == 0
    assert "4 of 4 cells and" in capsys.readouterr().err


@pytest.mark.usefixtures("committed")
@pytest.mark.parametrize(
    ("code", "later"),
    [
        (("a", False), ("a", False)),
        (("a", False), ("b", False)),
        (("a", False), ("a", True)),
        # What was changed may have been changed again.
        (("a", True), ("a", True)),
        ((None, None), (None, None)),
    ],
    ids=str,
)
def test_runs_of_other_code_do_not_stand_for_this_one(
    code: Any,
    later: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """What was stopped goes on as long as nothing can have changed."""

    def at(commit: Any, modified: Any) -> int:
        version = {"commit": commit, "modified": modified}
        monkeypatch.setattr(records, "code_version", lambda: version)
        return figure2.main([*COMMAND, str(tmp_path / "out")])

    assert at(*code) == 0
    capsys.readouterr()
    if later == ("a", False):
        assert at(*later) == 0
        return
    assert at(*later) == 2
    assert "holds runs of other code: with --gate use another --out" in capsys.readouterr().err


@pytest.mark.usefixtures("committed")
def test_other_seeds_are_compared_by_cells(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["--preset", "tiny", "--methods", "baseline", "--first-seed", "7", "--gate"]
    assert figure2.main([*command, "--out", str(tmp_path / "out")]) == 0
    assert "2 of 2 cells and 0 verdicts as committed" in capsys.readouterr().err


@pytest.mark.usefixtures("committed")
def test_a_broken_cycle_is_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Columns that are not divided: what is multiplied in front is not undone behind."""
    whole = _apply.targets_of
    monkeypatch.setattr(
        _stepper, "targets_of", lambda plan: [replace(one, columns=()) for one in whole(plan)]
    )
    assert figure2.main([*COMMAND, str(tmp_path / "out")]) == 1
    error = capsys.readouterr().err
    assert "gate: enorm, depth 3" in error
    assert "baseline" not in error.split("gate:", 1)[1]


def test_nothing_measured_is_no_success(
    committed: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = ["--preset", "tiny", "--methods", "bn", "--depths", "1", "--seeds", "1", "--gate"]
    assert figure2.main([*other, "--out", str(tmp_path / "out")]) == 2
    assert "counterpart" in capsys.readouterr().err
    assert not (tmp_path / "out").exists(), "what cannot be compared was trained first"
    for file in (committed / "records").iterdir():
        file.unlink()
    assert figure2.main([*COMMAND, str(tmp_path / "out")]) == 2
    assert "counterpart" in capsys.readouterr().err


def test_runs_on_other_images_are_not_compared(
    committed: Path, known: list[Record], capsys: pytest.CaptureFixture[str]
) -> None:
    data = {**known[0].data, "hash": "another", "cifar10": False}
    other = [replace(record, data=data) for record in known]
    assert gate.check(other, page.read(committed), TINY) == 2
    assert "holds no records of such images" in capsys.readouterr().err


@pytest.mark.usefixtures("committed")
def test_a_changed_verdict_is_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    answers = iter([{"ranking": "reproduced"}, {"ranking": "inconclusive"}])
    monkeypatch.setattr(gate, "_verdicts", lambda runs: next(answers))
    assert figure2.main([*COMMAND, str(tmp_path / "out")]) == 1
    assert "verdict of ranking: reproduced, expected inconclusive" in capsys.readouterr().err


@pytest.mark.parametrize(
    "part",
    [lambda spec: True, lambda spec: spec.depth == 1, lambda spec: spec.epochs == 1],
    ids=["all", "one depth", "first epochs"],
)
def test_committed_runs_pass_whether_all_or_some(
    part: Callable[[RunSpec], bool], tmp_path: Path
) -> None:
    """A few decide less than all, which is no change."""
    preset = PRESETS["paper"]
    evidence = records.read_all(gate.committed(preset) / "records")
    done = [one for one in evidence if part(one.spec)]
    for record in done:
        records.write(tmp_path / "records", record)
    assert gate.check(done, page.read(tmp_path), preset) == 0


def test_committed_runs_made_again_elsewhere_pass(tmp_path: Path) -> None:
    """By the present numerics, which some of them are older than."""
    preset = PRESETS["paper"]
    methods = {one.id for one in FIGURE2.series}
    known = list(records.read_all(gate.committed(preset) / "records"))
    assert {one.numerics_version for one in known} != {known[0].spec.numerics_version}
    rows = table.runs(known).table
    chosen = rows["series"].isin(methods) & (rows["seed"] < 2) & (rows["epochs"] == preset.epochs)
    for record, take in zip(known, chosen, strict=True):
        if take:
            again = replace(
                record,
                key=record.spec.key(record.data["hash"]),
                numerics_version=record.spec.numerics_version,
                environment={**record.environment, "torch": "9.9"},
            )
            records.write(tmp_path / "records", again)
    report = page.read(tmp_path)
    assert gate.check(report.records, report, preset) == 0


def test_an_expected_verdict_that_is_none_of_all_runs_is_stopped(
    capsys: pytest.CaptureFixture[str],
) -> None:
    preset = PRESETS["paper"]
    report = page.read(gate.committed(preset))

    def checked(expected: Verdict, **environment: object) -> int:
        wrong = [
            replace(one, claim=replace(one.claim, expected=expected))
            if one.claim.id == "baseline-above-authors"
            else one
            for one in report.findings
        ]
        done = [
            replace(one, environment={**one.environment, **environment}) for one in report.records
        ]
        return gate.check(done, replace(report, findings=tuple(wrong)), preset)

    assert checked("not reproduced") == 1
    error = capsys.readouterr().err
    assert error == (
        "gate: verdict of baseline-above-authors: reproduced, expected not reproduced\n"
    )
    assert checked("inconclusive") == 1
    # Elsewhere an interval may end on the other side of its band.
    assert checked("inconclusive", torch="9.9") == 0
    assert checked("not reproduced", torch="9.9") == 1


def test_a_cycle_that_does_nothing_is_found_on_any_machine(known: list[Record]) -> None:
    """By the scales of the first step, however far apart accuracies may lie by chance."""
    idle: list[Record] = []
    for record in known:
        scales = tuple(
            replace(one, log2_a=tuple(0.0 for _ in one.log2_a)) for one in record.result.scales
        )
        elsewhere = moved(record, 0.0, torch="9.9")
        idle.append(replace(elsewhere, result=replace(record.result, scales=scales)))
    # Of an older version of the numerics, too, whose keys are others.
    older = [replace(record, key=f"older{record.key}") for record in known]
    assert gate.compare(idle, older) == gate.compare(idle, known)
    cells, wrong = gate.compare(idle, known)
    assert cells == 4
    runs = [one for one in known if one.spec.method == "enorm"]
    assert sorted(line.split(":")[0] for line in wrong) == sorted(one.file_name for one in runs)
    assert "after step 1 log2 of the scales is" in wrong[0]
