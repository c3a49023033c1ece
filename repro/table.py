"""Records as tables: one row per method and depth, beside what was published where that applies."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import resources

import pandas as pd

from repro.records import Record
from repro.spec import PRESETS, RunSpec


def is_comparable(records: Sequence[Record]) -> bool:
    """Whether published values apply: CIFAR-10 images, in full, and the paper preset's epochs."""
    paper = PRESETS["paper"]
    return all(
        record.data["cifar10"]
        and (record.spec.epochs, record.spec.train_images) == (paper.epochs, paper.train_images)
        for record in records
    )


def published(figure: int) -> pd.DataFrame:
    """Published accuracies of a figure of the report, one row per method and depth."""
    with (resources.files("repro") / "published" / "published_accuracy.csv").open() as lines:
        table = pd.read_csv(lines)
    return table[table["figure"] == figure]


def runs(records: Sequence[Record]) -> pd.DataFrame:
    """One row per run: spec, outcome, accuracy in percent (missing where it diverged)."""
    return pd.DataFrame(
        [
            {
                "method": record.spec.method,
                "depth": record.spec.depth,
                "seed": record.spec.seed,
                "learning_rate": record.spec.learning_rate,
                "outcome": record.result.outcome,
                "accuracy": record.result.accuracy,
            }
            for record in records
        ]
    )


def summary(records: Sequence[Record]) -> pd.DataFrame:
    """One row per method and depth, in the records' order.

    Columns: ``method``, ``depth``, ``runs``, ``diverged``, and over the finite runs' test
    accuracies in percent ``mean``, ``std`` (n − 1; missing for one run), ``min``, ``max``. Where
    published values apply also ``report`` (Figure 2), ``authors`` (Figure 1) and
    ``minus_report = mean − report`` in points.
    """
    cells = runs(records).groupby(["method", "depth"], sort=False)
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
    if is_comparable(records):
        for source, figure in (("report", 2), ("authors", 1)):
            known = published(figure).set_index(["method", "intermediary_layers"])
            values = known["test_accuracy_percent"]
            table[source] = [
                values[method, depth]
                for method, depth in zip(table["method"], table["depth"], strict=True)
            ]
        table["minus_report"] = table["mean"] - table["report"]
    return table


def describe(specs: Sequence[RunSpec]) -> str:
    """What was run, in a few words: depths, seeds, epochs, images."""
    depths = sorted({spec.depth for spec in specs})
    seeds = sorted({spec.seed for spec in specs})
    first = specs[0]
    return (
        f"depth{'s' * (len(depths) > 1)} {', '.join(map(str, depths))}; "
        f"{len(seeds)} seed{'s' * (len(seeds) > 1)} ({', '.join(map(str, seeds))}); "
        f"{first.epochs} epochs on {first.train_images:,} images"
    )
