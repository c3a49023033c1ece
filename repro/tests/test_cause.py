"""What runs note of the scales, and what the panel on the cause of NaN makes of it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from repro import cause, figure3, page
from repro.data import Images
from repro.experiments import SERIES
from repro.model import build
from repro.spec import PRESETS, Preset
from repro.sweep import run_all

CPU = torch.device("cpu")


def test_scales_are_noted_while_c_moves_them(images: Images, tmp_path: Path) -> None:
    """3 steps per epoch of 600 images: steps 1, 2, 4 and 8, and where a tenth epoch ends."""
    plain = replace(
        SERIES["enorm-bias"].spec(5, 0, 10, 600), width=32, learning_rate=1e-3, batch_size=256
    )
    specs = [plain, replace(plain, c=1.0), replace(plain, method="baseline")]
    moved, still, none = run_all(specs, images, tmp_path, CPU)
    for record in (moved, still):
        assert [point.step for point in record.result.scales] == [1, 2, 4, 8, 16, 30]
        assert {len(point.log2_a) for point in record.result.scales} == {6}
    # One scale vector stands behind each layer but the last.
    assert len(build(plain)) == 2 * 6 + 1
    smallest = [min(record.result.scales[-1].log2_a) for record in (moved, still)]
    assert smallest[0] < smallest[1] - 1, "c = 1.2 shrinks what c = 1 does not"
    assert none.result.scales == ()


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch, images: Images) -> None:
    monkeypatch.setitem(PRESETS, "tiny", Preset("tiny", (11,), 1, 1, 600, "synthetic"))
    monkeypatch.setattr("repro.cli.load", lambda source: images)


@pytest.mark.usefixtures("tiny")
def test_the_panel_is_made_of_records(tmp_path: Path) -> None:
    """Rates are lr / a² of the smallest layer, but lr where biases are preconditioned."""
    assert figure3.main(["--preset", "tiny", "--methods", "enorm", "--out", str(tmp_path)]) == 0
    assert (tmp_path / "figure3-cause.svg").exists()
    assert "Why biases give NaN" in (tmp_path / "report.html").read_text()
    found = page.read(tmp_path).records
    rows = {row["series"]: row for row in cause.cause(found).to_dict("records")}
    assert set(rows) == {"enorm-bias", "enorm-bias-preconditioned", "enorm-bias-c1"}
    rate = SERIES["enorm-bias"].spec(11, 0, 1, 600).learning_rate
    plain = rows["enorm-bias"]
    assert plain["rate"] == pytest.approx(rate / np.min(plain["a"]) ** 2)
    assert rows["enorm-bias-preconditioned"]["rate"] == rate
    assert plain["rate"] > rows["enorm-bias-c1"]["rate"] > rate
