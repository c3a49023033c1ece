"""What is run for which figure: series of runs that differ in depth and seed only."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from repro.spec import METHODS, PAPER_DEPTHS, Method, Preset, RunSpec, learning_rates

DEEP = (11, 13, 15, 17, 19)


@dataclass(frozen=True)
class Series:
    """The report's recipe with one method, but for what is changed.

    Attributes:
        id: on command lines and in tables.
        label: in figures and on pages.
        method: normalization scheme.
        changed: fields of :class:`repro.spec.RunSpec` that differ from the recipe.
        depths: where it is run.
    """

    id: str
    label: str
    method: Method
    changed: Mapping[str, Any] = field(default_factory=dict, hash=False)
    depths: tuple[int, ...] = PAPER_DEPTHS

    def spec(self, depth: int, seed: int, epochs: int, train_images: int) -> RunSpec:
        """One run; ``changed`` may replace the number of images.

        Raises:
            ValueError: a depth that Table 1 has no rate for.
        """
        if depth not in PAPER_DEPTHS:
            raise ValueError(
                f"depth {depth} has no learning rate in the report: use odd depths from 1 to 19"
            )
        rate = learning_rates()[self.method, depth]
        recipe = RunSpec(self.method, depth, seed, rate, epochs=epochs, train_images=train_images)
        return replace(recipe, **self.changed)


@dataclass(frozen=True)
class Experiment:
    """One command: a name, a title, its series.

    Attributes:
        name: of the module and of files.
        title: on outputs.
        series: what it runs.
        figure: which figure of the report shows it, if one does.
    """

    name: str
    title: str
    series: tuple[Series, ...]
    figure: int | None = None

    def specs(
        self,
        preset: Preset,
        seeds: Sequence[int],
        depths: Sequence[int] | None,
        ids: Sequence[str],
    ) -> list[RunSpec]:
        """The runs, seed by seed so that an early stop leaves whole seeds.

        Args:
            preset: sizes; its depths where none are given.
            seeds: of each series at each depth.
            depths: of all series; None takes those of the preset that the series has.
            ids: of the series to run, or methods to run all series of.

        Raises:
            ValueError: a depth that Table 1 has no rate for, or nothing to run.
        """
        chosen = [series for series in self.series if {series.id, series.method} & set(ids)]
        found = [
            series.spec(depth, seed, preset.epochs, preset.train_images)
            for seed in seeds
            for depth in depths or preset.depths
            for series in chosen
            if depths is not None or depth in series.depths
        ]
        # A part of the images that is larger than all of a preset's is none.
        found = [spec for spec in found if spec.train_images <= preset.train_images]
        if not found:
            raise ValueError(
                f"{', '.join(ids)} has no runs in preset {preset.name} at these depths: give "
                "--depths, or --preset paper"
            )
        return list(dict.fromkeys(found))


_LABELS = {"baseline": "Baseline", "bn": "BN", "enorm": "ENorm", "enorm+bn": "ENorm + BN"}

FIGURE2 = Experiment(
    "figure2",
    "Figure 2",
    tuple(Series(method, _LABELS[method], method) for method in METHODS),
    figure=2,
)

_BIAS = {"bias": True}
FIGURE3 = Experiment(
    "figure3",
    "Figure 3",
    (
        Series("baseline-bias", "Baseline", "baseline", _BIAS),
        Series("enorm-bias", "ENorm", "enorm", _BIAS),
        Series(
            "enorm-bias-preconditioned",
            "ENorm, biases preconditioned",
            "enorm",
            {**_BIAS, "precondition_bias": True},
        ),
        Series("enorm-bias-c1", "ENorm, c = 1", "enorm", {**_BIAS, "c": 1.0}),
    ),
    figure=3,
)

_SOME = (1, 9, 19)


def _all_methods(id: str, label: str, **changed: Any) -> tuple[Series, ...]:
    return tuple(
        Series(f"{method}-{id}", f"{_LABELS[method]}, {label}", method, changed, _SOME)
        for method in METHODS
    )


CONSIDERATIONS = Experiment(
    "considerations",
    "Considerations",
    (
        *_all_methods("image-statistics", "each image's statistics", statistics="image"),
        *_all_methods("true-deviation", "true deviation", statistics="dataset"),
        *_all_methods(
            "constant-rate",
            "constant rate, best of validation",
            schedule="constant",
            validation=True,
        ),
        Series(
            "enorm-bias-softmax",
            "ENorm with biases, softmax",
            "enorm",
            {**_BIAS, "output": "softmax"},
            DEEP,
        ),
        Series("enorm-softmax", "ENorm, softmax", "enorm", {"output": "softmax"}, _SOME),
        # Where ENorm diverges now and then: half the rate of Table 1, or no factor of depth.
        Series("enorm-rate-0.025", "ENorm, rate 0.025", "enorm", {"learning_rate": 0.025}, (15,)),
        Series("enorm-c1", "ENorm without biases, c = 1", "enorm", {"c": 1.0}, (15,)),
        Series(
            "enorm+bn-rate-0.1",
            "ENorm + BN, rate 0.1",
            "enorm+bn",
            {"learning_rate": 0.1},
            (15, 17, 19),
        ),
        Series(
            "enorm+bn-notebook-schedule",
            "ENorm + BN, the notebook's schedule",
            "enorm+bn",
            {"schedule": "notebook"},
            (15, 17, 19),
        ),
        Series(
            "enorm+bn-affine",
            "ENorm + BN, function kept",
            "enorm+bn",
            {"batchnorm": "affine"},
            _SOME,
        ),
        *_all_methods("normal", "normal initialisation", init="normal"),
        *_all_methods("40960-images", "40,960 images", train_images=40_960),
        *_all_methods("decay-0.01", "weight decay 10e-3", weight_decay=1e-2),
        Series(
            "enorm-last-left-out", "ENorm, last pair left out", "enorm", {"last_pair": False}, _SOME
        ),
        Series("enorm-jacobi", "ENorm, Jacobi order", "enorm", {"order": "jacobi"}, _SOME),
    ),
)

EXPERIMENTS = {one.name: one for one in (FIGURE2, FIGURE3, CONSIDERATIONS)}
SERIES = {series.id: series for one in EXPERIMENTS.values() for series in one.series}


def series_of(spec: RunSpec, train_images: int) -> Series | None:
    """The series that a run belongs to, whatever its depth, seed and epochs; None if to none.

    Args:
        spec: the run.
        train_images: how many images runs have where their series does not say.
    """
    if spec.depth not in PAPER_DEPTHS:
        return None
    # Those with a number of their own first: alone in a folder, theirs is the usual one too.
    for series in sorted(SERIES.values(), key=lambda one: "train_images" not in one.changed):
        if spec == series.spec(spec.depth, spec.seed, spec.epochs, train_images):
            return series
    return None
