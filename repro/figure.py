"""Pictures of records, as matplotlib figures that are saved as PNG and SVG."""

from __future__ import annotations

import io
import re
import textwrap
from collections.abc import Sequence
from pathlib import Path

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from repro.experiments import Experiment, Series, series_of
from repro.files import write_atomically
from repro.records import Record
from repro.spec import Method
from repro.table import Runs, bands, published

# Okabe and Ito's palette, which colour-blind readers tell apart; markers repeat the distinction.
_COLORS: dict[Method, str] = {
    "baseline": "#000000",
    "bn": "#0072B2",
    "enorm": "#D55E00",
    "enorm+bn": "#009E73",
}
_MARKERS: dict[Method, str] = {"baseline": "o", "bn": "s", "enorm": "^", "enorm+bn": "D"}
_LINES = ("-", "--", ":", "-.")
# Series of one method beyond the line styles above have another shade as well.
_SHADES = ("", "#9C6ADE", "#7F7F7F")


def accuracy_figure(experiment: Experiment, runs: Runs, title: str) -> Figure:
    """Test accuracy by depth, one panel per series.

    Every run is a point, the mean a line; behind it the published curve with the band of
    :func:`repro.statistics.band` and, grey, the other series' means; behind a consideration, which
    has no published curve, the mean of the series that it changes.
    """
    found = runs.of(experiment)
    # Of runs that were cut short and did not diverge there is nothing to draw.
    whole = (found.table["epochs"] == found.epochs) | (found.table["outcome"] == "diverged")
    present = [one for one in experiment.series if one.id in set(found.table["series"][whole])]
    columns = min(len(present), 4)
    lines = -(-len(present) // columns)
    figure = Figure(figsize=(max(5.0, 3.0 * columns), 3.6 * lines + 0.6), layout="constrained")
    panels = figure.subplots(lines, columns, sharex=True, sharey=True, squeeze=False).flatten()
    depths = sorted(set(found.table["depth"]))
    means = {
        one.id: found.finished[found.finished["series"] == one.id]
        .groupby("depth")["accuracy"]
        .mean()
        for one in present
    }
    for panel, series in zip(panels, present, strict=False):
        if experiment.figure is None:
            unchanged = runs.finished[runs.finished["series"] == _unchanged(series)]
            mean = unchanged.groupby("depth")["accuracy"].mean().dropna()
            panel.plot(mean[mean.index.isin(depths)], ".-", color="0.7", lw=1, zorder=1)
        elif len(present) <= 4:
            for other in present:
                if other.id != series.id:
                    panel.plot(means[other.id], color="0.82", lw=1, zorder=1)
        _accuracy_panel(panel, experiment, runs, series)
        panel.plot(means[series.id], color=_COLORS[series.method], lw=1.6, zorder=3)
        panel.set_title(textwrap.fill(series.label, 30), size=10)
        panel.grid(axis="y", color="0.93")
        panel.spines[["top", "right"]].set_visible(False)
    for panel in panels[len(present) :]:
        panel.set_axis_off()
    for panel in panels[: len(present)]:
        panel.tick_params(labelbottom=True)
    for panel in panels[max(0, len(present) - columns) : len(present)]:
        panel.set_xlabel("intermediary layers (depth)")
    panels[0].set_xticks(depths, [str(depth) for depth in depths])
    # Ticks alone would end the axis in the middle of the outermost points.
    panels[0].set_xlim(min(depths) - 1, max(depths) + 1)
    for panel in panels[:: max(1, columns)]:
        panel.set_ylabel("test accuracy (%)")
    handles = [
        Line2D([], [], color="0.3", marker="o", mfc="none", lw=1.6, label="here: runs and mean")
    ]
    if experiment.figure is None:
        label = "here: the same without the change"
        handles.append(Line2D([], [], color="0.7", marker=".", lw=1, label=label))
    elif len(present) <= 4:
        handles.append(Line2D([], [], color="0.82", lw=1, label="here: the other panels' means"))
    if found.comparable and experiment.figure is not None:
        handles.append(
            Line2D([], [], color="0.3", ls="--", lw=1, label="the report, with its band")
        )
    if found.comparable and experiment.figure == 2:
        # The authors trained without biases only.
        handles.append(Line2D([], [], color="0.3", ls=":", lw=1, label="the authors"))
    figure.suptitle(textwrap.fill(title, 110), x=0.01, ha="left", size=10)
    figure.legend(handles=handles, loc="outside lower center", ncols=4, frameon=False, fontsize=9)
    return figure


def _unchanged(series: Series) -> str:
    """The series of Figure 2 or 3 that has a published curve, of which this is a variant."""
    return f"{series.method}-bias" if series.changed.get("bias") else series.method


def _accuracy_panel(panel: Axes, experiment: Experiment, runs: Runs, series: Series) -> None:
    color = _COLORS[series.method]
    rows = runs.finished[runs.finished["series"] == series.id]
    plain = _unchanged(series)
    if runs.comparable and experiment.figure is not None:
        known = published(experiment.figure, plain).dropna(subset="test_accuracy_percent")
        panel.plot(known["test_accuracy_percent"], "--", color=color, lw=1, alpha=0.6, zorder=2)
        around = bands(rows, known)
        panel.fill_between(
            around.index,
            around["published"] - around["half"],
            around["published"] + around["half"],
            color=color,
            alpha=0.13,
            lw=0,
        )
        authors = published(1, plain)["test_accuracy_percent"]
        panel.plot(authors, ":", color=color, lw=1, alpha=0.6, zorder=2)
    panel.plot(
        rows["depth"], rows["accuracy"], _MARKERS[series.method], color=color, ms=5, mfc="none"
    )
    every = runs.first_epochs
    lost = every[(every["series"] == series.id) & (every["outcome"] == "diverged")]
    for depth, count in lost.groupby("depth")["seed"].count().items():
        there = every[(every["series"] == series.id) & (every["depth"] == depth)]
        text = f"{count}/{len(there)} diverged"
        before = every[(every["series"] == plain) & (every["depth"] == depth)]
        chosen = set(before["seed"][before["outcome"] == "diverged"])
        if plain != series.id and set(there["seed"]) <= chosen:
            # Seeds that were run for that reason say nothing of how often it happens.
            text = f"{count} of the {len(there)} that diverge unchanged"
        panel.annotate(
            text,
            (float(str(depth)), 0),
            (0, 4),
            xycoords=("data", "axes fraction"),
            textcoords="offset points",
            ha="center",
            color=color,
            rotation=90,
            size=8,
            # Other panels' means may run behind it.
            bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.8, "pad": 0.5},
        )


def curves_figure(experiment: Experiment, records: Sequence[Record], title: str) -> Figure:
    """Test accuracy against epoch, one panel per depth, one line per run.

    Args:
        experiment: whose runs are shown.
        records: runs, of which others are passed over, as are those of fewer epochs.
        title: on top.
    """
    # Shorter runs tell of divergence: one epoch is no curve beside sixty.
    longest = max(record.spec.epochs for record in records)
    records = [record for record in records if record.spec.epochs == longest]
    depths = sorted({record.spec.depth for record in records if record.result.curve})
    # Where no run ends an epoch, empty panels say so.
    depths = depths or sorted({record.spec.depth for record in records})
    columns = min(len(depths), 5)
    lines = -(-len(depths) // columns)
    figure = Figure(figsize=(max(9.0, 2.6 * columns), 3.4 * lines), layout="constrained")
    panels = figure.subplots(lines, columns, sharex=True, sharey=True, squeeze=False).flatten()
    images = max(record.spec.train_images for record in records)
    # A run that diverges in its first epoch has no curve.
    found = {series_of(record.spec, images) for record in records if record.result.curve}
    present = [series for series in experiment.series if series in found]
    styles = _styles(present)
    for record in records:
        series = series_of(record.spec, images)
        curve = record.result.curve
        if series is None or series not in present or not curve:
            continue
        panel = panels[depths.index(record.spec.depth)]
        panel.plot(
            range(1, len(curve) + 1),
            [point.test_accuracy for point in curve],
            styles[series.id][0],
            color=styles[series.id][1],
            lw=1.1,
            marker=_MARKERS[series.method],
            markevery=max(1, len(curve) // 3),
            ms=4,
            mfc="none",
        )
    for panel, depth in zip(panels, depths, strict=False):
        panel.set_title(f"depth {depth}", size=9)
        panel.set_xlabel("epoch")
        panel.tick_params(labelbottom=True)
        panel.grid(color="0.93")
        panel.spines[["top", "right"]].set_visible(False)
    for panel in panels[len(depths) :]:
        panel.set_axis_off()
    panels[0].set_ylabel("test accuracy (%)")
    handles = [
        Line2D(
            [],
            [],
            ls=styles[one.id][0],
            color=styles[one.id][1],
            marker=_MARKERS[one.method],
            mfc="none",
            label=one.label,
        )
        for one in present
    ]
    figure.suptitle(textwrap.fill(title, 100), x=0.01, ha="left", size=10)
    figure.legend(handles=handles, loc="outside lower center", ncols=4, frameon=False)
    return figure


def _styles(present: Sequence[Series]) -> dict[str, tuple[str, str]]:
    """Line styles and colours that tell series of one method apart."""
    seen: dict[str, int] = {}
    styles = {}
    for series in present:
        number = seen[series.method] = seen.get(series.method, -1) + 1
        shade, line = divmod(number, len(_LINES))
        color = _SHADES[shade % len(_SHADES)] or _COLORS[series.method]
        styles[series.id] = (_LINES[line], color)
    return styles


# Curves are hundreds of kilobytes of coordinates, of which a hundredth of a pixel is plenty.
_LONG = re.compile(r"\d+\.\d{3,}")


def svg(figure: Figure) -> str:
    """The picture as an SVG element, the same text for the same records."""
    buffer = io.StringIO()
    # Fixed ids and no date, so that a page changes only when its numbers do.
    # Every text names all fonts that may stand in: three do instead of the usual ten.
    with mpl.rc_context(
        {
            "svg.hashsalt": "repro",
            "svg.fonttype": "none",
            "font.sans-serif": ["DejaVu Sans", "Verdana", "Arial"],
        }
    ):
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    return re.sub(r' [dxy]="[^"]*"', lambda part: _LONG.sub(_short, part[0]), buffer.getvalue())


def _short(number: re.Match[str]) -> str:
    return f"{float(number[0]):.2f}".rstrip("0").rstrip(".")


def save(figure: Figure, target: Path) -> str:
    """Write ``target.png`` and ``target.svg``; return what :func:`svg` gives."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=150, metadata={"Software": None})
    text = svg(figure)
    write_atomically(target.with_name(target.name + ".png"), buffer.getvalue())
    write_atomically(target.with_name(target.name + ".svg"), text.encode())
    return text
