"""Pictures of records, as matplotlib figures that are saved as PNG and SVG."""

from __future__ import annotations

import io
import textwrap
from collections.abc import Sequence
from pathlib import Path

import matplotlib as mpl
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from repro.records import Record, write_atomically
from repro.spec import METHODS
from repro.table import is_comparable, published, runs

NAMES = {"baseline": "Baseline", "bn": "BN", "enorm": "ENorm", "enorm+bn": "ENorm + BN"}
# Okabe and Ito's palette, which colour-blind readers tell apart; markers repeat the distinction.
_COLORS = {"baseline": "#000000", "bn": "#0072B2", "enorm": "#D55E00", "enorm+bn": "#009E73"}
_MARKERS = {"baseline": "o", "bn": "s", "enorm": "^", "enorm+bn": "D"}
# Figures of the report: 2 is its own, 1 the original authors'.
_PUBLISHED_STYLES = {2: "--", 1: ":"}
_DODGE = {"baseline": -0.24, "bn": -0.08, "enorm": 0.08, "enorm+bn": 0.24}


def accuracy_figure(records: Sequence[Record], title: str) -> Figure:
    """Test accuracy by depth: every run a point, means as bars, published curves behind."""
    figure = Figure(figsize=(9, 5.2), layout="constrained")
    axes = figure.add_subplot()
    table = runs(records)
    comparable = is_comparable(records)
    depths = set(table["depth"])
    if comparable:
        depths |= set(published(2)["intermediary_layers"])
    place = {depth: index for index, depth in enumerate(sorted(depths))}
    handles = []
    for method in [name for name in METHODS if name in set(table["method"])]:
        color, marker, shift = _COLORS[method], _MARKERS[method], _DODGE[method]
        if comparable:
            for number, style in _PUBLISHED_STYLES.items():
                known = published(number)
                known = known[known["method"] == method]
                x = known["intermediary_layers"].map(place) + shift
                accuracy = known["test_accuracy_percent"]
                axes.plot(x, accuracy, style, color=color, lw=1, alpha=0.45, zorder=1)
        rows = table[table["method"] == method]
        x = rows["depth"].map(place) + shift
        axes.plot(x, rows["accuracy"], marker, color=color, ms=6, mfc="none", zorder=3)
        for depth, mean in rows.groupby("depth")["accuracy"].mean().items():
            ends = [place[depth] + shift - 0.07, place[depth] + shift + 0.07]
            axes.plot(ends, [mean, mean], "-", color=color, lw=2.5, zorder=2)
        for depth in rows.loc[rows["outcome"] == "diverged", "depth"].unique():
            axes.annotate(
                "diverged",
                (place[depth] + shift, 0),
                (0, 4),
                xycoords=("data", "axes fraction"),
                textcoords="offset points",
                color=color,
                rotation=90,
                size=8,
            )
        handles.append(
            Line2D([], [], color=color, marker=marker, mfc="none", lw=2.5, label=NAMES[method])
        )
    if comparable:
        handles += [
            Line2D([], [], color="0.4", ls="--", lw=1, label="report, Figure 2"),
            Line2D([], [], color="0.4", ls=":", lw=1, label="authors, Figure 1"),
        ]
    axes.set_xlabel("intermediary layers (depth)")
    axes.set_ylabel("test accuracy (%)")
    axes.set_xticks(list(place.values()), [str(depth) for depth in place])
    axes.set_xlim(-0.5, len(place) - 0.5)
    axes.grid(axis="y", color="0.9")
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_title(textwrap.fill(title, 100), loc="left", size=10)
    axes.legend(handles=handles, loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False)
    return figure


def curves_figure(records: Sequence[Record], title: str) -> Figure:
    """Test accuracy against epoch, one panel per depth, one line per run."""
    depths = sorted({record.spec.depth for record in records})
    columns = min(len(depths), 5)
    lines = -(-len(depths) // columns)
    figure = Figure(figsize=(max(9.0, 2.6 * columns), 3.4 * lines), layout="constrained")
    panels = figure.subplots(lines, columns, sharex=True, sharey=True, squeeze=False).flatten()
    for panel, depth in zip(panels, depths, strict=False):
        for record in records:
            curve = record.result.curve
            if record.spec.depth == depth and curve:
                epochs = range(1, len(curve) + 1)
                accuracy = [point.test_accuracy for point in curve]
                marker = _MARKERS[record.spec.method]
                panel.plot(
                    epochs,
                    accuracy,
                    color=_COLORS[record.spec.method],
                    lw=1.1,
                    marker=marker,
                    markevery=max(1, len(curve) // 6),
                    ms=4,
                    mfc="none",
                )
        panel.set_title(f"depth {depth}", size=9)
        panel.set_xlabel("epoch")
        panel.grid(color="0.93")
        panel.spines[["top", "right"]].set_visible(False)
    for panel in panels[len(depths) :]:
        panel.set_axis_off()
    panels[0].set_ylabel("test accuracy (%)")
    present = {record.spec.method for record in records}
    handles = [
        Line2D([], [], color=_COLORS[name], marker=_MARKERS[name], mfc="none", label=NAMES[name])
        for name in METHODS
        if name in present
    ]
    figure.suptitle(textwrap.fill(title, 100), x=0.01, ha="left", size=10)
    figure.legend(handles=handles, loc="outside lower center", ncols=4, frameon=False)
    return figure


def svg(figure: Figure) -> str:
    """The picture as an SVG element, the same text for the same records."""
    buffer = io.StringIO()
    # Fixed ids and no date, so that a page changes only when its numbers do.
    with mpl.rc_context({"svg.hashsalt": "repro", "svg.fonttype": "none"}):
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    return buffer.getvalue()


def save(figure: Figure, target: Path) -> None:
    """Write ``target.png`` and ``target.svg``."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=150, metadata={"Software": None})
    write_atomically(target.with_name(target.name + ".png"), buffer.getvalue())
    write_atomically(target.with_name(target.name + ".svg"), svg(figure).encode())
