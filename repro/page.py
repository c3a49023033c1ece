"""Table, figures and the report page of a folder, made from its run records alone."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

import jinja2
import pandas as pd

from repro import claims, figure, records, table, verdicts
from repro.cause import cause_figure
from repro.claims import Finding
from repro.experiments import EXPERIMENTS, SERIES, Experiment, series_of
from repro.files import write_atomically
from repro.records import Record
from repro.table import Runs, describe, summary

# What BatchNorm costs, as `python -m asv_benchmarks.table --json` writes it.
COST = "cost.json"


@dataclass(frozen=True)
class Section:
    """One experiment's part of a folder."""

    experiment: Experiment
    heading: str
    rows: pd.DataFrame
    records: tuple[Record, ...]


@dataclass(frozen=True)
class Part:
    """A part of the table of verdicts.

    Attributes:
        name: its heading.
        findings: sorted by verdict.
        verdicts: how many there are of each.
    """

    name: str
    findings: tuple[Finding, ...]
    verdicts: Mapping[claims.Verdict, int]


@dataclass(frozen=True)
class Report:
    """Everything that a folder's records say.

    Attributes:
        title: what was run on what.
        runs: all runs as rows.
        records: the records, in order.
        sections: one per experiment that has runs.
        findings: what they say to each claim; where runs are shorter than published ones, to those
            on divergence; empty where images are others or fewer.
    """

    title: str
    runs: Runs
    records: tuple[Record, ...]
    sections: tuple[Section, ...]
    findings: tuple[Finding, ...]


def read(folder: Path) -> Report:
    """The report of ``folder``.

    Raises:
        ValueError: it holds no run records, a file there is none, or images differ.
    """
    found = list(records.read_all(folder / "records"))
    if not found:
        raise ValueError(f"{folder / 'records'} holds no run records: give a figure's --out")
    runs = table.runs(found)
    ids = list(SERIES)
    images = max(record.spec.train_images for record in found)
    series = {record.key: series_of(record.spec, images) for record in found}

    def place(record: Record) -> tuple[int, int, int, int]:
        one = series[record.key]
        at = len(ids) if one is None else ids.index(one.id)
        return record.spec.seed, record.spec.depth, at, record.spec.epochs

    found.sort(key=place)
    sections = []
    for experiment in EXPERIMENTS.values():
        own = tuple(record for record in found if series[record.key] in experiment.series)
        if own:
            heading = _heading(experiment.title, own, runs)
            sections.append(Section(experiment, heading, summary(experiment, runs), own))
    cost: Mapping[int, float] = {}
    if (folder / COST).exists():
        try:
            shares = json.loads((folder / COST).read_text())["bn_percent_of_step"]
            cost = {int(depth): float(share) for depth, share in shares.items()}
            if not all(map(math.isfinite, cost.values())):
                raise ValueError("a share is no number")
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(
                f"{folder / COST} is not what `python -m asv_benchmarks.table --json` writes: "
                "write it again, or remove it"
            ) from error
    findings: Sequence[Finding] = []
    if runs.comparable:
        findings = verdicts.decide(runs, claims.load(), cost)
    elif runs.full_size:
        chosen = [claim for claim in claims.load() if claim.test in verdicts.FIRST_EPOCH]
        some = verdicts.decide(runs, chosen, {})
        findings = [one for one in some if one.verdict != "not run"]
    title = _heading("Equi-normalization, run again", found, runs)
    return Report(title, runs, tuple(found), tuple(sections), tuple(findings))


def _heading(name: str, found: Sequence[Record], runs: Runs) -> str:
    """Title of an output: what it shows, form of the images, sizes."""
    text = f"{name}: {found[0].data['form']}; {describe([record.spec for record in found])}"
    return text if runs.comparable else f"{text} (not comparable with published values)"


def write(folder: Path, command: str) -> Report:
    """Write tables, figures and ``report.html`` of ``folder`` and return what they show.

    Raises:
        ValueError: as :func:`read`.
        OSError: the folder cannot be written.
    """
    report = read(folder)
    pictures: dict[str, dict[str, str]] = {}
    for section in report.sections:
        name = section.experiment.name
        rows = section.rows.to_csv(index=False, float_format="%.6g")
        write_atomically(folder / f"{name}.csv", rows.encode())
        drawn = {
            name: figure.accuracy_figure(section.experiment, report.runs, section.heading),
            f"{name}-curves": figure.curves_figure(
                section.experiment, section.records, section.heading
            ),
        }
        if name == "figure3" and (cause := cause_figure(section.records)) is not None:
            drawn[f"{name}-cause"] = cause
        pictures[name] = {
            target.removeprefix(name).lstrip("-") or "accuracy": _inline(
                figure.save(picture, folder / target)
            )
            for target, picture in drawn.items()
        }
    if report.findings:
        rows = findings_table(report.findings).to_csv(index=False)
        write_atomically(folder / "verdicts.csv", rows.encode())
    write_atomically(folder / "report.html", _render(report, pictures, command).encode())
    return report


def findings_table(findings: Sequence[Finding]) -> pd.DataFrame:
    """One row per claim: ``id``, ``claim``, ``section``, ``verdict``, ``effect`` and the rest."""
    return pd.DataFrame(
        [
            {
                "id": finding.claim.id,
                "claim": finding.claim.text,
                "section": finding.claim.section,
                "verdict": finding.verdict,
                "expected": finding.claim.expected,
                "effect": finding.effect,
                "interval": finding.interval,
                "n": finding.n,
                "note": finding.note,
                "remark": finding.claim.remark,
                "reason": finding.reason,
            }
            for finding in findings
        ]
    )


def _render(report: Report, pictures: Mapping[str, Mapping[str, str]], command: str) -> str:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("repro"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters["number"] = _number
    images = max(record.spec.train_images for record in report.records)
    labels = {}
    for record in report.records:
        series = series_of(record.spec, images)
        # Labels leave out what all series of an experiment have in common.
        labels[record.key] = record.spec.method if series is None else series.id
    return environment.get_template("report.html").render(
        report=report,
        parts=parts(report.findings),
        pictures=pictures,
        series={id: series.label for id, series in SERIES.items()},
        labels=labels,
        environments=_environments(report.records),
        command=command,
    )


def parts(findings: Sequence[Finding]) -> list[Part]:
    """The report's claims, and what goes beyond them; a part without findings is left out."""
    kinds = get_args(claims.Verdict)
    found = []
    for name, beyond in (("The report's claims", False), ("Questions beyond them", True)):
        own = [finding for finding in findings if finding.claim.beyond is beyond]
        own.sort(key=lambda finding: kinds.index(finding.verdict))
        counts = Counter(finding.verdict for finding in own)
        if own:
            found.append(Part(name, tuple(own), {kind: counts[kind] for kind in kinds}))
    return found


def _inline(text: str) -> str:
    """The SVG element without its XML prolog, which HTML has no place for."""
    return text[text.index("<svg") :]


def _number(value: float | None, digits: int = 2, sign: bool = False) -> str:
    if value is None or pd.isna(value):
        return "–"
    return f"{value:{'+' if sign else ''}.{digits}f}"


def _environments(found: Sequence[Record]) -> list[dict[str, object]]:
    """Distinct environments without the time, each with its number of runs."""
    names = dict.fromkeys(name for record in found for name in record.environment)
    names.pop("finished", None)
    counts = Counter(tuple(record.environment.get(name) for name in names) for record in found)
    return [
        {"runs": count, **dict(zip(names, values, strict=True))} for values, count in counts.items()
    ]
