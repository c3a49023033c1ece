"""The command line, from options to page, and what it says when it cannot."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from repro import figure, figure2, figure3, page, records, report, table
from repro.experiments import CONSIDERATIONS, FIGURE2, FIGURE3, SERIES, series_of
from repro.records import Record
from repro.spec import METHODS, PRESETS, Preset, learning_rates
from repro.train import RunResult
from repro.verdicts import FIRST_EPOCH

EVIDENCE = Path(__file__).parents[1] / "evidence"


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    """A third preset, for runs of a second."""
    monkeypatch.setitem(PRESETS, "tiny", Preset("tiny", (1,), 1, 1, 512, "synthetic"))


def test_paper_preset_is_the_reports_recipe() -> None:
    """DESIGN: 60 epochs, 50,000 images, batch 256, decay 1e-3, c = 1.2, p = 2, Table 1's rates."""
    specs = FIGURE2.specs(PRESETS["paper"], [0], None, METHODS)
    assert len(specs) == 40
    settings = {
        (s.epochs, s.train_images, s.batch_size, s.weight_decay, s.c, s.p_norm, s.batchnorm, s.bias)
        for s in specs
    }
    assert settings == {(60, 50_000, 256, 1e-3, 1.2, 2.0, "ignore", False)}
    assert {(s.method, s.depth): s.learning_rate for s in specs} == learning_rates()


@pytest.mark.usefixtures("tiny")
def test_every_output_says_that_its_images_are_synthetic(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["--preset", "tiny", "--methods", "baseline", "enorm", "--out", str(tmp_path)]
    assert figure2.main(command) == 0
    printed = capsys.readouterr()
    assert "synthetic" in printed.out
    assert "left" in printed.err, "no estimate of the time left was shown"
    for name in ("report.html", "figure2.svg", "figure2-curves.svg"):
        text = (tmp_path / name).read_text()
        assert "synthetic images (seed 0)" in text, name
        assert "the authors" not in text, name
    # Coordinates to a hundredth of a pixel; texts are left as they are.
    assert not re.search(r' d="[^"]*\.\d{3}', (tmp_path / "figure2.svg").read_text())
    assert (tmp_path / "figure2.png").read_bytes().startswith(b"\x89PNG")
    rows = pd.read_csv(tmp_path / "figure2.csv")
    assert rows["series"].tolist() == ["baseline", "enorm"]
    assert "report" not in rows.columns
    assert "--out DIR" in (tmp_path / "report.html").read_text()
    assert figure2.main([*command[:-2], f"--out={tmp_path}"]) == 0
    assert "--out=DIR" in (tmp_path / "report.html").read_text()
    assert str(tmp_path) not in (tmp_path / "report.html").read_text()


@pytest.mark.usefixtures("tiny")
def test_outputs_come_again_from_records_alone(tmp_path: Path) -> None:
    assert figure2.main(["--preset", "tiny", "--methods", "bn", "--out", str(tmp_path)]) == 0
    names = ["figure2.csv", "figure2.svg", "figure2-curves.svg", "figure2.png"]
    before = {name: (tmp_path / name).read_bytes() for name in names}
    for name in names:
        (tmp_path / name).unlink()
    assert report.main([str(tmp_path)]) == 0
    assert {name: (tmp_path / name).read_bytes() for name in names} == before


@pytest.mark.usefixtures("tiny")
def test_more_seeds_leave_the_first_alone(tmp_path: Path) -> None:
    command = ["--preset", "tiny", "--methods", "baseline", "--out", str(tmp_path)]
    assert figure2.main(command) == 0
    first = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "records").iterdir()}
    assert figure2.main([*command, "--first-seed", "3", "--seeds", "2"]) == 0
    done = records.read_all(tmp_path / "records")
    assert sorted(record.spec.seed for record in done) == [0, 3, 4]
    now = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "records").iterdir()}
    assert first.items() < now.items()


@pytest.mark.usefixtures("tiny")
def test_where_no_run_ends_an_epoch_there_is_a_page(tmp_path: Path) -> None:
    assert figure2.main(["--preset", "tiny", "--methods", "bn", "--out", str(tmp_path)]) == 0
    (record,) = records.read_all(tmp_path / "records")
    lost = RunResult("diverged", (), None, (0, 3), 0)
    records.write(tmp_path / "records", replace(record, result=lost))
    assert report.main([str(tmp_path)]) == 0
    assert "diverged" in (tmp_path / "report.html").read_text()


def test_a_part_larger_than_a_presets_images_is_left_out() -> None:
    """So that all considerations can be run small."""
    for preset, sizes in (("paper", {50_000, 40_960}), ("quick", {10_000})):
        specs = CONSIDERATIONS.specs(PRESETS[preset], [0], [1], METHODS)
        assert {spec.train_images for spec in specs} == sizes


def test_a_part_of_the_images_is_known_for_one_when_it_is_alone() -> None:
    """Then its number is the largest in the folder."""
    for series in (SERIES["bn-40960-images"], SERIES["bn"]):
        spec = series.spec(depth=9, seed=0, epochs=60, train_images=50_000)
        assert series_of(spec, train_images=spec.train_images) == series
        assert series_of(spec, train_images=50_000) == series


def test_a_consideration_stands_before_what_it_changes() -> None:
    """The mean of the same method, with biases where it has them; the title gives all sizes."""
    made = list(records.read_all(EVIDENCE / "records"))
    softmax = [one for one in made if (one.spec.output, one.spec.bias) == ("softmax", False)]
    whole = {one.key for one in softmax if one.spec.epochs > 1}
    runs = table.runs([one for one in made if one.key not in whole])
    shown = figure.accuracy_figure(CONSIDERATIONS, runs, "")
    panels = {panel.get_title().replace("\n", " "): panel for panel in shown.axes}
    for label, plain in (("BN, 40,960 images", "bn"), ("ENorm with biases, softmax", "enorm-bias")):
        points = np.asarray(panels[label].lines[0].get_xydata()).tolist()
        own = runs.finished[runs.finished["series"] == plain].groupby("depth")["accuracy"].mean()
        assert points == [[depth, own[depth]] for depth, _ in points]
        assert len(points) > 1
    # With runs of one epoch only.
    assert "enorm-softmax" in set(runs.table["series"])
    assert "ENorm, softmax" not in panels
    specs = [series.spec(9, 0, 60, 50_000) for series in (SERIES["bn-40960-images"], SERIES["bn"])]
    assert table.describe(specs).endswith("60 epochs on 40,960 or 50,000 images")


def test_curves_are_those_of_whole_runs() -> None:
    """Beside sixty epochs one is no curve; alone it is."""
    made = [one for one in records.read_all(EVIDENCE / "records") if one.spec.depth == 17]
    short = [one for one in made if one.spec.epochs == 1]
    for given, length in ((made, 60), (short, 1)):
        (panel,) = figure.curves_figure(FIGURE2, given, "").axes
        own = [one for one in given if one.spec.epochs == length and not one.spec.bias]
        assert {len(np.asarray(line.get_xydata())) for line in panel.lines} == {length}
        assert 0 < len(panel.lines) <= len(own)


def test_seeds_that_were_chosen_are_no_rate() -> None:
    """C = 1 was run where ENorm diverges; ENorm itself, and Baseline, at all of 150."""
    found = table.runs(
        [one for one in records.read_all(EVIDENCE / "records") if one.spec.depth == 15]
    )
    said = {
        (experiment.name, panel.get_title()): [text.get_text() for text in panel.texts]
        for experiment in (FIGURE2, FIGURE3, CONSIDERATIONS)
        for panel in figure.accuracy_figure(experiment, found, "").axes
    }
    c1 = said["considerations", "ENorm without biases, c = 1"]
    assert c1 == ["5 of the 7 that diverge unchanged"]
    assert said["figure2", "ENorm"] == ["7/150 diverged"]
    assert said["figure2", "Baseline"] == ["1/150 diverged"]
    assert said["figure3", "ENorm"] == ["3/3 diverged"]


def test_every_curve_has_a_look_of_its_own() -> None:
    made = list(records.read_all(EVIDENCE / "records"))
    (legend,) = figure.curves_figure(CONSIDERATIONS, made, "").legends
    looks = [(one.get_linestyle(), one.get_color(), one.get_marker()) for one in legend.get_lines()]
    assert len(looks) > 10
    assert len(set(looks)) == len(looks)


def test_the_page_counts_our_own_questions_apart() -> None:
    report = page.read(EVIDENCE)
    theirs, ours = page.parts(report.findings)
    assert {finding.claim.beyond for finding in ours.findings} == {True}
    assert not any(finding.claim.beyond for finding in theirs.findings)
    together = [finding.claim.id for part in (theirs, ours) for finding in part.findings]
    assert sorted(together) == sorted(finding.claim.id for finding in report.findings)
    assert ours.verdicts["not reproduced"] == sum(
        finding.verdict == "not reproduced" for finding in ours.findings
    )


def test_what_was_run_in_a_few_words() -> None:
    """Seeds as ranges; of runs of other lengths the longest, and how many others."""
    one = SERIES["bn"].spec(9, 4, 60, 50_000)
    for seeds, words in (
        ((4,), "1 seed (4)"),
        ((0, 1), "2 seeds (0, 1)"),
        ((8, 2, 0, 1, 9, 5, 7), "7 seeds (0 to 2, 5, 7 to 9)"),
    ):
        several = [replace(one, seed=seed) for seed in seeds]
        assert table.describe(several) == f"depth 9; {words}; 60 epochs on 50,000 images"
    uneven = [one, replace(one, seed=5), replace(one, seed=4, depth=3)]
    words = "depths 3, 9; 1 to 2 seeds per point (4, 5); 60 epochs on 50,000 images"
    assert table.describe(uneven) == words
    short = [replace(one, seed=seed, epochs=1, depth=3) for seed in (7, 8)]
    shown = "depth 9; 1 seed (4); 60 epochs on 50,000 images; 2 shorter runs"
    assert table.describe([one, *short]) == shown


def test_a_depth_given_twice_is_run_once() -> None:
    assert len(FIGURE2.specs(PRESETS["quick"], [0], [1, 1], ["bn"])) == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--depths", "2"], "depth 2 has no learning rate in the report: use odd depths"),
        (["--data", "no-such-folder"], "no-such-folder has no folder train/"),
        (["--device", "abacus"], "--device abacus cannot be used here"),
        (["--device", "meta"], "--device meta cannot be used here"),
        (["--data", "synthetic"], "50000 training images are asked for, but there are 10000"),
    ],
)
def test_requests_that_cannot_be_met(
    arguments: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """One sentence, exit status 2, nothing written."""
    out = tmp_path / "out"
    assert figure2.main([*arguments, "--out", str(out)]) == 2
    error = capsys.readouterr().err
    assert message in error.splitlines()[-1]
    assert "Traceback" not in error
    assert not list(out.rglob("*.json"))


@pytest.mark.usefixtures("tiny")
def test_a_folder_that_cannot_be_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("")
    assert figure2.main(["--preset", "tiny", "--out", str(tmp_path / "file")]) == 2
    assert "use another --out" in capsys.readouterr().err


@pytest.mark.parametrize(
    "content",
    ["{", "[]", '{"bn_percent_of_step": {"nine": 6}}', '{"bn_percent_of_step": {"9": NaN}}'],
)
def test_costs_that_are_none(
    content: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for path in (EVIDENCE / "records").glob("baseline-d01-s0-*.json"):
        (tmp_path / "records").mkdir(exist_ok=True)
        (tmp_path / "records" / path.name).write_bytes(path.read_bytes())
    (tmp_path / page.COST).write_text(content)
    assert report.main([str(tmp_path)]) == 2
    assert "cost.json is not what" in capsys.readouterr().err


def test_wrong_options(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in (
        ["--seeds", "0"],
        ["--first-seed", "-1"],
        ["--methods", "gn"],
        ["--preset", "huge"],
        ["--threads", str(2**40)],
        ["--seeds", str(10**23)],
        ["--data", ""],
        ["--out", ""],
    ):
        with pytest.raises(SystemExit) as stopped:
            figure2.main(arguments)
        assert stopped.value.code == 2
    error = capsys.readouterr().err
    assert "must be at least 1" in error
    assert "must be at least 0" in error
    assert "must be at most 4096" in error
    assert "must be at most 1000000" in error
    assert "argument --data: is empty" in error
    assert "argument --out: is empty" in error
    with pytest.raises(SystemExit):
        figure3.main(["--methods", "bn"])
    assert "invalid choice: 'bn'" in capsys.readouterr().err


def test_a_longer_run_takes_no_verdicts_away() -> None:
    """The paper's epochs are those of a whole run, whatever else lies in the folder."""
    evidence = list(records.read_all(Path(table.__file__).parent / "evidence" / "records"))
    one = next(record for record in evidence if record.spec.epochs == 60)
    longer = replace(one, spec=replace(one.spec, epochs=61))
    before, after = table.runs(evidence), table.runs([*evidence, longer])
    assert after.comparable
    assert after.epochs == 60
    assert len(after.finished) == len(before.finished)


def test_first_epochs_decide_what_is_said_of_them(tmp_path: Path) -> None:
    """Without a whole run in the folder; nothing else can be compared then."""
    for record in records.read_all(EVIDENCE / "records"):
        if record.spec.seed < 3 and not record.spec.validation:
            records.write(tmp_path / "records", _first_epoch(record))
    shown = page.write(tmp_path, "command")
    found = {one.claim.id: one for one in shown.findings}
    assert {one.claim.test for one in shown.findings} <= {*FIRST_EPOCH}
    assert found["bias-nan"].verdict == "reproduced"
    assert "not comparable" in shown.title
    text = (tmp_path / "report.html").read_text()
    assert "never up to 9" in text


def _first_epoch(record: Record) -> Record:
    """What a run would have left after one epoch."""
    spec, result = replace(record.spec, epochs=1), record.result
    curve = result.curve[:1]
    result = replace(
        result,
        outcome="finite" if curve else "diverged",
        curve=curve,
        accuracy=curve[0].test_accuracy if curve else None,
        diverged_at=None if curve else result.diverged_at,
    )
    key = spec.key(record.data["hash"], record.numerics_version)
    return replace(record, spec=spec, result=result, key=key)


def test_committed_evidence_is_what_its_records_say(tmp_path: Path) -> None:
    """Tables and verdicts of the paper preset on real images: rebuilt from the records."""
    done = list(records.read_all(EVIDENCE / "records"))
    for record in done:
        assert record.data["cifar10"]
        assert not record.environment["modified"]
    rebuilt = page.read(EVIDENCE)
    for section in rebuilt.sections:
        committed = pd.read_csv(EVIDENCE / f"{section.experiment.name}.csv")
        pd.testing.assert_frame_equal(section.rows, committed, check_dtype=False, rtol=1e-5)
    verdicts = pd.read_csv(EVIDENCE / "verdicts.csv", keep_default_na=False)
    again = tmp_path / "verdicts.csv"
    page.findings_table(rebuilt.findings).to_csv(again, index=False)
    pd.testing.assert_frame_equal(pd.read_csv(again, keep_default_na=False), verdicts)
    assert verdicts["verdict"].tolist() == verdicts["expected"].tolist()
    figure2_rows = rebuilt.sections[0].rows
    printed = [
        table.published(2, row["series"])["test_accuracy_percent"][row["depth"]]
        for _, row in figure2_rows.iterrows()
    ]
    assert figure2_rows["minus_report"].to_numpy() == pytest.approx(
        figure2_rows["mean"].to_numpy() - printed,
        # A depth where all runs diverged has no mean.
        nan_ok=True,
    )
