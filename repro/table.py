"""Records as tables: runs of one campaign, and their cells beside what was published."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from importlib import resources

import pandas as pd

from repro.experiments import Experiment, series_of
from repro.records import Record
from repro.spec import PRESETS, RunSpec
from repro.statistics import band, pooled


@dataclass(frozen=True)
class Runs:
    """Runs on the same images, as rows.

    Attributes:
        table: a row per run: ``series`` (missing if it belongs to none), ``method``, ``depth``,
            ``seed``, ``learning_rate``, ``epochs``, ``outcome``, ``accuracy`` in percent (missing
            where it diverged), ``diverged_epoch`` and ``diverged_step``.
        epochs: of a whole run: the paper's if any run has them, else those of the longest.
        full_size: whether they are of all of CIFAR-10.
    """

    table: pd.DataFrame
    epochs: int
    full_size: bool

    @property
    def comparable(self) -> bool:
        """Whether published values apply: all of CIFAR-10, and the paper's epochs."""
        return self.full_size and self.epochs == PRESETS["paper"].epochs

    @property
    def finished(self) -> pd.DataFrame:
        """Whole runs."""
        return self.table[self.table["epochs"] == self.epochs]

    @property
    def first_epochs(self) -> pd.DataFrame:
        """One row per series, depth and seed: the longest run, for all begin alike."""
        rows = self.table.dropna(subset="series").sort_values("epochs")
        return rows.drop_duplicates(["series", "depth", "seed"], keep="last")

    def of(self, experiment: Experiment) -> Runs:
        """Those of an experiment's series."""
        ids = [series.id for series in experiment.series]
        return Runs(self.table[self.table["series"].isin(ids)], self.epochs, self.full_size)


def runs(records: Sequence[Record]) -> Runs:
    """All runs as rows.

    Raises:
        ValueError: there are none, or they were made from different images.
    """
    if not records:
        raise ValueError("there are no run records")
    if len({record.data["hash"] for record in records}) > 1:
        forms = sorted({record.data["form"] for record in records})
        raise ValueError(
            f"these records are of different images ({', '.join(forms)}): keep each in a folder "
            "of its own"
        )
    images = max(record.spec.train_images for record in records)
    paper = PRESETS["paper"]
    lengths = {record.spec.epochs for record in records}
    # A longer run takes no claim from those of the paper's length.
    epochs = paper.epochs if paper.epochs in lengths else max(lengths)
    rows = []
    for record in records:
        spec, result = record.spec, record.result
        series = series_of(spec, images)
        epoch, step = result.diverged_at or (None, None)
        rows.append(
            {
                "series": None if series is None else series.id,
                "method": spec.method,
                "depth": spec.depth,
                "seed": spec.seed,
                "learning_rate": spec.learning_rate,
                "epochs": spec.epochs,
                "outcome": result.outcome,
                "accuracy": result.accuracy,
                "diverged_epoch": epoch,
                "diverged_step": step,
            }
        )
    table = pd.DataFrame(rows).astype({"accuracy": float, "diverged_epoch": float})
    full_size = images == paper.train_images and all(one.data["cifar10"] for one in records)
    return Runs(table, epochs, full_size)


@cache
def _published() -> pd.DataFrame:
    with (resources.files("repro") / "published" / "published_accuracy.csv").open() as lines:
        return pd.read_csv(lines)


def published(figure: int, series: str) -> pd.DataFrame:
    """A published curve, one row per depth; empty if that figure has none for the series.

    Args:
        figure: 1 (the authors'), 2 or 3 of the report.
        series: id of a series of :mod:`repro.experiments`.
    """
    table = _published()
    names = table["method"] + table["bias"].map({"yes": "-bias", "no": ""})
    rows = table[(table["figure"] == figure) & (names == series)]
    return rows.set_index("intermediary_layers")


def bands(rows: pd.DataFrame, known: pd.DataFrame) -> pd.DataFrame:
    """Where the means of one series would lie at once were they those of a published curve.

    Args:
        rows: its whole runs.
        known: the curve, as :func:`published` gives it.

    Returns:
        By depth ``mean``, ``published`` and ``half``, by :func:`repro.statistics.band`; empty where
        the spread of a run is not known well enough.
    """
    means = rows.groupby("depth")["accuracy"].agg(["mean", "count"]).dropna()
    at = known.dropna(subset="test_accuracy_percent").join(means, how="inner")
    spread = pooled(rows["accuracy"], rows["depth"])
    depths_run = rows["depth"].nunique()
    if not spread.decides:
        at = at.iloc[:0]
    halves = [
        band(spread, int(ours), int(theirs), depths_run, float(reading))
        for ours, theirs, reading in zip(
            at["count"], at["runs_averaged"], at["reading_error_percent"], strict=True
        )
    ]
    return pd.DataFrame(
        {"mean": at["mean"], "published": at["test_accuracy_percent"], "half": halves}
    )


def summary(experiment: Experiment, found: Runs) -> pd.DataFrame:
    """One row per series and depth of an experiment.

    Columns: ``series``, ``depth``, ``runs``, ``diverged``, and over the finite runs' test
    accuracies in percent ``mean``, ``std`` (n − 1; missing for one run), ``min``, ``max``. Where
    published values apply also ``report``, ``authors`` and ``minus_report = mean − report`` in
    points.
    """
    rows = found.of(experiment).finished
    ids = [series.id for series in experiment.series]
    rows = rows.assign(series=pd.Categorical(rows["series"], ids, ordered=True))
    cells = rows.groupby(["series", "depth"], observed=True)
    table = pd.DataFrame(
        {
            "runs": cells.size(),
            "diverged": cells["outcome"].agg(lambda outcomes: int((outcomes == "diverged").sum())),
            "mean": cells["accuracy"].mean(),
            "std": cells["accuracy"].std(),
            "min": cells["accuracy"].min(),
            "max": cells["accuracy"].max(),
        }
    ).reset_index()
    table["series"] = table["series"].astype(str)
    if found.comparable and experiment.figure is not None:
        for source, figure in (("report", experiment.figure), ("authors", 1)):
            table[source] = [
                published(figure, series)["test_accuracy_percent"].get(depth)
                for series, depth in zip(table["series"], table["depth"], strict=True)
            ]
            table[source] = table[source].astype(float)
        table["minus_report"] = table["mean"] - table["report"]
    return table


def describe(specs: Sequence[RunSpec]) -> str:
    """What was run, in a few words: depths, seeds, epochs, images; shorter runs as a number."""
    epochs = max(spec.epochs for spec in specs)
    whole = [spec for spec in specs if spec.epochs == epochs]
    depths = sorted({spec.depth for spec in whole})
    seeds = sorted({spec.seed for spec in whole})
    counts = Counter(replace(spec, seed=0) for spec in whole).values()
    least, most = min(counts), max(counts)
    each = f"{least} to {most} seeds" if least < most else f"{most} seed{'s' * (most > 1)}"
    trained = sorted({spec.train_images - spec.held_back for spec in whole})
    images = " or ".join(f"{one:,}" for one in trained)
    shorter = len(specs) - len(whole)
    return (
        f"depth{'s' * (len(depths) > 1)} {', '.join(map(str, depths))}; "
        f"{each}{' per point' * (least < most)} ({_ranges(seeds)}); "
        f"{epochs} epoch{'s' * (epochs > 1)} on {images} images"
        + (f"; {shorter} shorter run{'s' * (shorter > 1)}" if shorter else "")
    )


def _ranges(numbers: Sequence[int]) -> str:
    """Sorted numbers, three and more that follow each other as ``first to last``."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return ", ".join(
        f"{run[0]} to {run[-1]}" if len(run) > 2 else ", ".join(map(str, run)) for run in runs
    )


def of_series(rows: pd.DataFrame, series: str) -> pd.DataFrame:
    """Rows of one series."""
    return rows[rows["series"] == series]


def listed(depths: Sequence[int]) -> str:
    """Depths, as a sentence names them."""
    return ", ".join(map(str, depths)) or "none"
