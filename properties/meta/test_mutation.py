"""The page of the mutation score."""

from __future__ import annotations

from pathlib import Path

import pytest

from properties.meta import mutation
from properties.meta.mutation import Survivor, function_of, page, sample

STATUSES = {
    "enorm._solve.xǁScalesǁcycle__mutmut_1": "killed",
    "enorm._solve.xǁScalesǁcycle__mutmut_2": "survived",
    "enorm._solve.x__cap__mutmut_1": "caught by type check",
    "enorm._walk.x_walk__mutmut_10": "not checked",
}
DRAWN = list(STATUSES)[:3]
ALIVE = Survivor("_solve.Scales.cycle", "a < b", "a <= b | c")


@pytest.mark.parametrize(
    ("entries", "wrong"),
    [
        ([(r"_solve\.Scales", "<=")], []),
        ([], ["no reason for _solve.Scales.cycle: a <= b | c"]),
        (
            [(r"_solve\._cap", "<=")],
            ["no reason for _solve.Scales.cycle: a <= b | c"],
        ),
        ([("_solve", "<="), ("_gone", "<=")], ["no function _gone, remove its entry"]),
        # What is not drawn may still need its reason.
        ([("_solve", "<="), ("_walk", "==")], []),
    ],
)
def test_reasons_fit_what_survives(
    entries: list[tuple[str, str]],
    wrong: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    path = tmp_path / "survivors.toml"
    path.write_text(
        "survivor = ["
        + ", ".join(
            f"{{function = '{function}', after = '{after}', reason = 'because'}}"
            for function, after in entries
        )
        + "]"
    )
    monkeypatch.setattr(mutation, "REASONS", path)
    text, found = page(STATUSES, DRAWN, [ALIVE], seed=3)
    assert found == wrong
    assert "--sample 3 --seed 3" in text
    assert "**66.7 %** of 3 changes, drawn from 4, are noticed (95 % interval 9.4 to 99.2 %" in text
    assert "| `a <= b \\| c` |" in text


def test_with_all_changes_each_reason_fits_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "survivors.toml"
    path.write_text("survivor = [{function = '_solve', after = '==', reason = 'because'}]")
    monkeypatch.setattr(mutation, "REASONS", path)
    _, found = page(STATUSES, list(STATUSES), [], seed=0)
    assert found == ["fits no survivor: =="]


def test_a_sample_depends_on_the_seed_alone() -> None:
    names = [f"enorm._a.x_f__mutmut_{number}" for number in range(50)]
    drawn = sample(names, 10, seed=1)
    assert sample(reversed(names), 10, seed=1) == drawn
    assert sample(names, 10, seed=2) != drawn
    assert len(set(drawn)) == 10
    assert sample(names, 0, seed=1) == sample(names, 99, seed=1) == sorted(names)


def test_a_mutants_name_holds_its_function() -> None:
    assert [function_of(name) for name in STATUSES] == [
        "_solve.Scales.cycle",
        "_solve.Scales.cycle",
        "_solve._cap",
        "_walk.walk",
    ]
