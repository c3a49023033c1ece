"""The planted bugs fit the source and the suite as they are; running them takes minutes."""

from __future__ import annotations

import pytest

from properties.meta.mutants import MUTANTS, Mutant, replaced
from properties.meta.project import ROOT
from properties.table import properties


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_mutant_fits(mutant: Mutant) -> None:
    source = (ROOT / "enorm" / mutant.file).read_text()
    compile(replaced(mutant, source), mutant.file, "exec")
    assert mutant.killer in properties()


def test_mutants_are_many_and_different() -> None:
    assert len({mutant.name for mutant in MUTANTS}) == len(MUTANTS) >= 25
    assert len({(mutant.file, mutant.old, mutant.new) for mutant in MUTANTS}) == len(MUTANTS)
