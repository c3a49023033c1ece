"""The authors' released code, ``facebookresearch/enorm`` (CC BY-NC), from a checkout of the user.

It takes named parameters and an SGD, and one of two kinds of network. It leaves out the last pair
and runs the groups in Jacobi order. Parameters of BatchNorm are told by "bn" in their names.
"""

from __future__ import annotations

import importlib.util
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from properties.implementation import Capabilities, Implementation, Order, Rule
from properties.specs import weighted

_FILE = Path("enorm") / "enorm" / "enorm.py"


def commit(path: Path) -> str:
    """The commit of a checkout, or "unknown"."""
    done = subprocess.run(
        ["git", "-C", str(path), "rev-parse", "--short", "HEAD"], capture_output=True, text=True
    )
    return done.stdout.strip() or "unknown"


class Authors(Implementation):
    """Their class ``ENorm``."""

    name = "facebookresearch/enorm"
    capabilities = Capabilities(
        # The exponent is ignored for convolutions; for Linear layers it is not.
        p=(2.0,),
        orders=("jacobi",),
        last_pair=False,
        biases=False,
        convolution=(2,),
        mixed=(),
        batchnorm=("ignore",),
    )

    def __init__(self, path: Path) -> None:
        file = path / _FILE
        spec = importlib.util.spec_from_file_location("facebookresearch_enorm", file)
        if spec is None or spec.loader is None or not file.exists():
            raise ValueError(f"{file} does not exist: give the path of a checkout")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        self._class: Any = module.ENorm
        self.version = commit(path)

    def stepper(
        self,
        model: nn.Sequential,
        optimizer: Optimizer | None,
        *,
        p: float,
        c: float,
        order: Order,
        batchnorm: Rule,
    ) -> Callable[[], None]:
        """See the protocol."""
        layers = [layer for layer, _ in weighted(model)]
        kind = "linear" if isinstance(layers[0], nn.Linear) else "conv"
        sgd = optimizer or torch.optim.SGD(model.parameters(), lr=0.0)
        named = [(f"layer_{index}.weight", layer.weight) for index, layer in enumerate(layers)]
        step: Callable[[], None] = self._class(named, sgd, kind, c=c, p=p).step
        return step


def load(path: Path | None) -> Authors:
    """From a checkout of ``https://github.com/facebookresearch/enorm``."""
    if path is None:
        raise ValueError("the authors' code is not part of this project: give --enorm-impl-path")
    return Authors(path)
