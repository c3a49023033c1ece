"""A run, described completely: nothing else may change its result but data, device and threads."""

from __future__ import annotations

import csv
import hashlib
import json
from dataclasses import dataclass, fields
from functools import cache
from importlib import resources
from typing import Literal, get_args

Method = Literal["baseline", "bn", "enorm", "enorm+bn"]
METHODS: tuple[Method, ...] = get_args(Method)
Statistics = Literal["published", "image", "dataset"]
PAPER_DEPTHS = tuple(range(1, 20, 2))

# Raised by hand when the same spec may give other numbers than before: that of runs with ENorm
# whenever its arithmetic changes, both when anything else in a step does.
_NUMERICS_VERSION = 1
_NUMERICS_VERSION_WITH_ENORM = 3


@dataclass(frozen=True)
class RunSpec:
    """One training run of the fully connected CIFAR-10 experiment.

    Attributes:
        method: normalization scheme.
        depth: p, the number of intermediary layers ``width × width``.
        seed: of weights and batch order, together with the depth and with nothing else.
        learning_rate: initial rate; epoch e of E trains with ``learning_rate · (1 − e / E)``.
        epochs: E.
        batch_size: images per step; a last smaller batch is kept.
        weight_decay: of every parameter.
        train_images: how many training images, the first ones of a fixed shuffle.
        c: depth factor of ENorm.
        p_norm: exponent of ENorm.
        batchnorm: ENorm's BatchNorm rule.
        bias: whether Linear layers have one.
        width: hidden units per layer.
        precondition_bias: whether ENorm lets biases learn as if never rescaled.
        order: of ENorm's updates within a cycle.
        last_pair: whether ENorm balances the last weight too; the authors' code does not.
        init: He initialisation from a uniform (the report) or a normal distribution (the authors).
        statistics: what images are normalised by: the published constants, each image's own mean
            and deviation, or the training set's true ones.
        schedule: ``linear`` as above; ``constant``; ``notebook`` is ``learning_rate − 0.1 e / E``,
            which the report's notebook does where the rate starts at 0.05.
        validation: train on 80 % of the images, and test the weights of the epoch that is best on
            the other 20 %, instead of the last.
        output: ``softmax`` puts one between the last layer and the cross-entropy, which has its
            own.
    """

    method: Method
    depth: int
    seed: int
    learning_rate: float
    epochs: int = 60
    batch_size: int = 256
    weight_decay: float = 1e-3
    train_images: int = 50_000
    c: float = 1.2
    p_norm: float = 2.0
    batchnorm: Literal["affine", "ignore"] = "ignore"
    bias: bool = False
    width: int = 500
    precondition_bias: bool = False
    order: Literal["cyclic", "jacobi"] = "cyclic"
    last_pair: bool = True
    init: Literal["uniform", "normal"] = "uniform"
    statistics: Statistics = "published"
    schedule: Literal["linear", "constant", "notebook"] = "linear"
    validation: bool = False
    output: Literal["logits", "softmax"] = "logits"

    @property
    def held_back(self) -> int:
        """How many of the training images are for validation."""
        return self.train_images // 5 if self.validation else 0

    @property
    def cost(self) -> int:
        """Products of a weight and an image's activation: what time is about proportional to."""
        weights = 3072 * self.width + self.depth * self.width**2 + self.width * 10
        return weights * self.epochs * self.train_images

    @property
    def uses_batchnorm(self) -> bool:
        """Whether a BatchNorm follows every hidden Linear."""
        return self.method in ("bn", "enorm+bn")

    @property
    def uses_enorm(self) -> bool:
        """Whether an ENorm cycle follows every optimiser step."""
        return self.method in ("enorm", "enorm+bn")

    @property
    def numerics_version(self) -> int:
        """Runs of one spec with other versions may differ by rounding and what comes of it."""
        return _NUMERICS_VERSION_WITH_ENORM if self.uses_enorm else _NUMERICS_VERSION

    def key(self, data_hash: str, numerics_version: int | None = None) -> str:
        """SHA-256 of the spec, the version of its numerics and the hash of the images.

        Fields at their default are left out, so that a field added later keeps old keys; a default
        must therefore never change.
        """
        given = {
            item.name: getattr(self, item.name)
            for item in fields(self)
            if getattr(self, item.name) != item.default
        }
        version = numerics_version or self.numerics_version
        content = {"spec": given, "numerics": version, "data": data_hash}
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


@dataclass(frozen=True)
class Preset:
    """Default sizes of a figure."""

    name: str
    depths: tuple[int, ...]
    seeds: int
    epochs: int
    train_images: int
    data: str


PRESETS = {
    "paper": Preset("paper", PAPER_DEPTHS, 1, 60, 50_000, "cifar10"),
    "quick": Preset("quick", (1, 9), 2, 3, 10_000, "synthetic"),
}


@cache
def learning_rates() -> dict[tuple[str, int], float]:
    """The report's Table 1: initial rate by method and depth."""
    table = resources.files("repro") / "published" / "learning_rates.csv"
    with table.open() as lines:
        return {
            (row["method"], int(row["intermediary_layers"])): float(row["initial_learning_rate"])
            for row in csv.DictReader(lines)
        }
