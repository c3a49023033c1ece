"""Are runs and verdicts still what was committed?

The committed runs are those of ``repro/evidence`` for the paper preset and of ``repro/reference``
for others. A run whose spec, images, device, threads and versions are those of a committed one has
to give the same curve, bit for bit; any run with the spec and images of a committed one, also one
made by an older version of the numerics, the same scales after its first cycle, but for rounding.

A cell is a series at a depth with so many epochs; it may end as a committed run of it does, finite
or diverged, but not surely more or less often the one (Fisher's exact test at 0.05 / m), and its
mean has to lie within

    reference mean ± t(1 − 0.05 / (2 m), ν) s sqrt(1/n + 1/n_reference),

m being the number of cells, s and ν those of the committed runs of the cell, or of its series, or
of all series where that has too few. A cell of which nothing can be said is not counted. Verdicts
have to be the expected ones of ``claims.toml``, or those of the same committed runs where these are
a part of all, but for claims on which these runs say nothing. Where published values do not apply
verdicts are held against those of the same committed runs. Made elsewhere, where runs cannot be
equal bit for bit, only "reproduced" and "not reproduced" contradict each other: an interval near
the end of its band is on either side of it by chance.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from scipy import stats

from repro import claims, records, table, verdicts
from repro.claims import Finding, Verdict
from repro.page import Report
from repro.records import Record
from repro.spec import Preset, RunSpec
from repro.statistics import ALPHA, pooled
from repro.table import Runs

_HERE = Path(__file__).parent
# Of log2 a after one step and its cycle: a thousand times what float32's rounding may change there,
# and a hundredth of what a cycle changes.
_CYCLE = 1e-3
_SAME = ("torch", "numpy", "device", "threads", "together")


def committed(preset: Preset) -> Path:
    """The folder of the committed runs of a preset."""
    if preset.name == "paper":
        return _HERE / "evidence"
    return _HERE / "reference" / preset.name


def require(specs: Sequence[RunSpec], preset: Preset, out: Path) -> None:
    """Tell before anything runs that there is nothing to compare it with, or nothing to run.

    Args:
        specs: the runs asked for.
        preset: whose committed runs they are compared with.
        out: folder of their records.

    Raises:
        ValueError: no committed run has the settings of one of ``specs``, whatever its seed; or
            ``out`` holds runs of other code than this, which would stand for those of this.
    """
    own = records.code_version()
    there = list(records.read_all(out)) if out.is_dir() else []
    alike = own["modified"] is False and all(
        own.items() <= one.environment.items() for one in there
    )
    if there and not alike:
        raise ValueError(f"{out} holds runs of other code: with --gate use another --out")
    folder = committed(preset)
    known = {replace(one.spec, seed=0) for one in records.read_all(folder / "records")}
    if not known & {replace(spec, seed=0) for spec in specs}:
        raise ValueError(
            f"none of these runs has a counterpart in {folder}: take away --gate, or ask for "
            "methods, depths and epochs that are committed there"
        )


def check(done: Sequence[Record], report: Report, preset: Preset) -> int:
    """Compare and say what differs.

    Args:
        done: the runs just asked for.
        report: of their folder.
        preset: whose committed runs to compare with.

    Returns:
        0 if nothing differs, 1 if something does, 2 if nothing could be compared.
    """
    folder = committed(preset)
    known = list(records.read_all(folder / "records"))
    given = {record.data["hash"] for record in done}
    real = all(record.data["cifar10"] for record in done)
    # CIFAR-10 in another form is nearly the same; other images are not.
    known = [one for one in known if one.data["hash"] in given or (real and one.data["cifar10"])]
    if not done or not known:
        print(
            f"gate: nothing was measured or {folder} holds no records of such images",
            file=sys.stderr,
        )
        return 2
    cells, wrong = compare(done, known)
    if not cells and not wrong:
        print(f"gate: too few runs in {folder} to say anything of these", file=sys.stderr)
        return 2
    asked = {_identity(record) for record in done}
    same = [record for record in known if _identity(record) in asked]
    if report.findings:
        found = _by_id(report.findings)
        expected = {finding.claim.id: finding.claim.expected for finding in report.findings}
        # Of a part of the committed runs no more can be expected than it says.
        if same and len(same) < len(known):
            of_part = _by_id(verdicts.decide(table.runs(same), claims.load(), {}))
            expected |= {id: of_part[id] for id in found if of_part[id] == found[id]}
    else:
        found = _verdicts(table.runs(done))
        # Runs with seeds of their own decide claims of their own.
        expected = _verdicts(table.runs(same)) if same else {}
    alike = _alike(done, known)
    wrong += [
        f"verdict of {id}: {found[id]}, expected {expected[id]}"
        for id in expected
        if found[id] not in (expected[id], "not run")
        and (alike or {found[id], expected[id]} == {"reproduced", "not reproduced"})
    ]
    for line in wrong:
        print(f"gate: {line}", file=sys.stderr)
    if not wrong:
        decided = sum(found[id] != "not run" for id in expected)
        print(
            f"gate: {cells} of {_cells(done)} cells and {decided} verdicts as committed",
            file=sys.stderr,
        )
    return int(bool(wrong))


def compare(done: Sequence[Record], known: Sequence[Record]) -> tuple[int, list[str]]:
    """How many cells were held against committed ones, and in what they differ from them."""
    wrong = _bits(done, known) + _first_cycles(done, known)
    cell = ["series", "depth", "epochs"]
    rows = table.runs(known).table.dropna(subset="series")
    rows = rows.assign(cell=rows.groupby(cell).ngroup())
    theirs = dict(list(rows.groupby(cell)))
    ours = dict(list(table.runs(done).table.dropna(subset="series").groupby(cell)))
    compared = 0
    shared = [key for key in ours if key in theirs]
    for key in shared:
        (series, depth, epochs), mine, other = key, ours[key], theirs[key]
        name = f"{series}, depth {depth}"
        new = sorted(set(mine["outcome"]) - set(other["outcome"]))
        if new:
            wrong.append(f"{name}: {', '.join(new)} runs, of which none is committed")
            continue
        lost = [int((side["outcome"] == "diverged").sum()) for side in (mine, other)]
        kept = [len(side) - n for side, n in zip((mine, other), lost, strict=True)]
        # Where both happen, as often: by Fisher's exact test.
        if stats.fisher_exact([lost, kept]).pvalue < ALPHA / len(shared):
            both = f"{lost[0]} of {len(mine)} runs diverged, committed {lost[1]} of {len(other)}"
            wrong.append(f"{name}: {both}")
        left = [side["accuracy"].dropna() for side in (mine, other)]
        if not len(left[0]):
            compared += 1
            continue
        alike = rows[rows["epochs"] == epochs]
        scopes = (other, alike[alike["series"] == series], alike)
        spreads = [pooled(scope["accuracy"], scope["cell"]) for scope in scopes]
        spread = next((one for one in spreads if one.decides), None)
        if spread is None:
            continue
        compared += 1
        half = spread.quantile(ALPHA / len(shared)) * spread.s
        half *= math.sqrt(1 / len(left[0]) + 1 / len(left[1]))
        if not abs(left[0].mean() - left[1].mean()) <= half:
            wrong.append(
                f"{name}: {left[0].mean():.2f} %, committed {left[1].mean():.2f} ± {half:.2f}"
            )
    return compared, wrong


def _identity(record: Record) -> tuple[RunSpec, str]:
    """What was run on which images, by whatever version of the numerics."""
    return record.spec, record.data["hash"]


def _cells(done: Sequence[Record]) -> int:
    rows = table.runs(done).table.dropna(subset="series")
    return int(rows.groupby(["series", "depth", "epochs"]).ngroups)


def _alike(done: Sequence[Record], known: Sequence[Record]) -> bool:
    """Whether every run has a committed one from an environment like its own."""
    by_key = {record.key: record for record in known}
    return all(record.key in by_key and _same_place(record, by_key[record.key]) for record in done)


def _same_place(one: Record, other: Record) -> bool:
    places = [{"together": 1, **record.environment} for record in (one, other)]
    return all(places[0][name] == places[1][name] for name in _SAME)


def _bits(done: Sequence[Record], known: Sequence[Record]) -> list[str]:
    """Runs that ought to be the committed ones bit for bit and are not."""
    by_key = {record.key: record for record in known}
    wrong = []
    for record in done:
        other = by_key.get(record.key)
        if other is None or not _same_place(record, other):
            continue
        curves = [
            [replace(epoch, seconds=0.0) for epoch in one.result.curve] for one in (record, other)
        ]
        if curves[0] != curves[1] or record.result.diverged_at != other.result.diverged_at:
            wrong.append(f"{record.file_name} is not the committed run, bit for bit")
    return wrong


def _first_cycles(done: Sequence[Record], known: Sequence[Record]) -> list[str]:
    """Runs whose first cycle is not that of the committed run, wherever that was made."""
    same = {_identity(record): record for record in known}
    wrong = []
    for record in done:
        other = same.get(_identity(record))
        if other is None or not (record.result.scales and other.result.scales):
            continue
        mine, theirs = record.result.scales[0], other.result.scales[0]
        apart = max(abs(a - b) for a, b in zip(mine.log2_a, theirs.log2_a, strict=True))
        if not apart <= _CYCLE:
            wrong.append(
                f"{record.file_name}: after step {mine.step} log2 of the scales is {apart:.2g} "
                "from the committed run's"
            )
    return wrong


def _by_id(findings: Sequence[Finding]) -> dict[str, Verdict]:
    return {finding.claim.id: finding.verdict for finding in findings}


def _verdicts(runs: Runs) -> dict[str, Verdict]:
    """Of the claims that need no published value."""
    chosen = [claim for claim in claims.load() if claim.test not in ("curve", "spread", "time")]
    return _by_id(verdicts.decide(runs, chosen, {}))
