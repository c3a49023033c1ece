"""The report page: one self-contained HTML file made from records alone."""

from __future__ import annotations

from collections.abc import Sequence

import jinja2
import pandas as pd

from repro.figure import NAMES, accuracy_figure, curves_figure, svg
from repro.records import Record
from repro.table import describe, is_comparable, summary


def heading(figure: str, records: Sequence[Record]) -> str:
    """Title of every output: figure, form of the images, sizes."""
    forms = sorted({record.data["form"] for record in records})
    text = f"{figure}: {', '.join(forms)}; {describe([record.spec for record in records])}"
    return text if is_comparable(records) else f"{text} (not comparable with published values)"


def render(figure: str, records: Sequence[Record], command: str) -> str:
    """The page's HTML.

    Args:
        figure: its name, such as "Figure 2".
        records: the runs it shows.
        command: the command line that made them.
    """
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("repro"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters["number"] = _number
    title = heading(figure, records)
    return environment.get_template("report.html").render(
        title=title,
        comparable=is_comparable(records),
        rows=summary(records).to_dict("records"),
        names=NAMES,
        records=records,
        accuracy=_inline(svg(accuracy_figure(records, title))),
        curves=_inline(svg(curves_figure(records, title))),
        environments=_environments(records),
        command=command,
    )


def _inline(text: str) -> str:
    """The SVG element without its XML prolog, which HTML has no place for."""
    return text[text.index("<svg") :]


def _number(value: float | None, digits: int = 2, sign: bool = False) -> str:
    if value is None or pd.isna(value):
        return "–"
    return f"{value:{'+' if sign else ''}.{digits}f}"


def _environments(records: Sequence[Record]) -> list[dict[str, object]]:
    """Distinct environments without the time, each with its number of runs."""
    counts: dict[tuple[tuple[str, object], ...], int] = {}
    for record in records:
        items = tuple((k, v) for k, v in record.environment.items() if k != "finished")
        counts[items] = counts.get(items, 0) + 1
    return [{**dict(items), "runs": count} for items, count in counts.items()]
