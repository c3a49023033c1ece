"""Why ENorm with biases gives NaN in deep networks, shown from what runs have noted.

With c > 1 every cycle moves the middle layers' activations to a smaller scale a. A step of SGD on
a bias then moves it, in its original scale, as with learning rate ``lr / a²``.
"""

from __future__ import annotations

from collections.abc import Sequence

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from repro.experiments import SERIES, series_of
from repro.records import Record

# Steps after which scales are compared: at most depths runs with biases get as far, and not much.
STEP = 32

_STYLES = {
    "enorm-bias": ("#D55E00", "^", -0.3),
    "enorm-bias-preconditioned": ("#009E73", "s", 0.0),
    "enorm-bias-c1": ("#0072B2", "v", 0.3),
}


def cause(records: Sequence[Record]) -> pd.DataFrame:
    """A row per run of ENorm with biases.

    Columns: ``series``, ``depth``, ``seed``, ``after`` (steps: 32, or fewer where the run ends
    sooner), ``a`` (the median scale of each hidden layer's units then), ``rate`` (the largest
    learning rate of a layer's biases in their original scale) and ``step`` (of the first
    non-finite loss, from 1; missing without one).
    """
    images = max(record.spec.train_images for record in records)
    rows = []
    for record in sorted(records, key=lambda one: one.spec.epochs):
        series = series_of(record.spec, images)
        noted = {point.step: point.log2_a for point in record.result.scales}
        # A run that diverges sooner, as some do without biases, has noted fewer.
        last = max((step for step in noted if step <= STEP), default=None)
        if series is None or series.id not in _STYLES or last is None:
            continue
        a = np.exp2(noted[last])
        diverged = record.result.diverged_at
        steps = -(-record.spec.train_images // record.spec.batch_size)
        rows.append(
            {
                "series": series.id,
                "depth": record.spec.depth,
                "seed": record.spec.seed,
                "after": last,
                "a": tuple(a),
                "rate": record.spec.learning_rate
                / (1.0 if record.spec.precondition_bias else float(a.min()) ** 2),
                "step": None if diverged is None else diverged[0] * steps + diverged[1] + 1,
            }
        )
    table = pd.DataFrame(rows, columns=["series", "depth", "seed", "after", "a", "rate", "step"])
    # Longer runs of the same series, depth and seed repeat the shorter.
    return table.drop_duplicates(["series", "depth", "seed"], keep="last")


def cause_figure(records: Sequence[Record]) -> Figure | None:
    """Scales by layer, learning rates of biases by depth, steps of divergence by depth.

    None where no run of the published setting with biases is there.
    """
    table = cause(records)
    published = table[table["series"] == "enorm-bias"].sort_values(["depth", "seed"])
    if published.empty:
        return None
    figure = Figure(figsize=(12.5, 4.4), layout="constrained")
    scales, rates, steps = figure.subplots(1, 3)
    first = published[published["after"] == STEP].drop_duplicates("depth")
    shades = mpl.colormaps["viridis"](np.linspace(0, 0.9, len(first)))
    for (_, row), color in zip(first.iterrows(), shades, strict=True):
        layers = range(1, len(row["a"]) + 1)
        scales.semilogy(layers, row["a"], ".-", color=color, lw=1, ms=4, label=str(row["depth"]))
    scales.set(title=f"scale a of each layer\nafter {STEP} steps, c = 1.2", xlabel="hidden layer")
    if len(first):
        scales.legend(title="depth", ncols=2, fontsize=8, title_fontsize=8)
    for series, (color, marker, shift) in _STYLES.items():
        rows = table[table["series"] == series]
        if rows.empty:
            continue
        label = SERIES[series].label
        x = rows["depth"] + shift
        rates.semilogy(x, rows["rate"], marker, color=color, mfc="none", label=label)
        sooner = rows["after"] < STEP
        rates.semilogy(x[sooner], rows.loc[sooner, "rate"], marker, color="red")
        lost = rows["step"].notna()
        steps.plot(x[lost], rows.loc[lost, "step"], marker, color=color, mfc="none", label=label)
        steps.plot(x[~lost], 0 * x[~lost], marker, color=color, ms=4)
    title = f"largest lr / a² of a layer's biases\nafter {STEP} steps (red: ended sooner)"
    rates.set(title=title, xlabel="depth")
    handles, labels = rates.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3, frameon=False, fontsize=9)
    title = "step of the first non-finite loss\n(filled, at the bottom: stayed finite)"
    steps.set(title=title, xlabel="depth")
    for axes in (scales, rates, steps):
        axes.title.set_size(10)
        axes.grid(color="0.93")
        axes.spines[["top", "right"]].set_visible(False)
    return figure
