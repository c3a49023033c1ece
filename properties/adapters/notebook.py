"""The report's notebook, ``jeromepl/enorm-reproducibility``, from a checkout of the user.

Its function takes an ``nn.Sequential`` and finds the Linear layers itself: all pairs, one after
the other, with biases. It has no convolutions and carries no momentum.
"""

from __future__ import annotations

import ast
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from properties.adapters.authors import commit
from properties.implementation import Capabilities, Implementation, Order, Rule

_FILE = "enorm_reproducibility.ipynb"
_FUNCTION = "equi_norm"


class Notebook(Implementation):
    """Its function ``equi_norm``."""

    name = "jeromepl/enorm-reproducibility"
    capabilities = Capabilities(convolution=(), mixed=(), batchnorm=("ignore",))

    def __init__(self, path: Path) -> None:
        file = path / _FILE
        if not file.exists():
            raise ValueError(f"{file} does not exist: give the path of a checkout")
        self._function = _function(json.loads(file.read_text()))
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
        return lambda: self._function(model, c=c, C=1, p=p)


def _function(notebook: dict[str, Any]) -> Any:
    """The one definition that is wanted, without running the rest of its cell or notebook."""
    for cell in notebook["cells"]:
        source = "".join(cell["source"])
        if cell["cell_type"] == "code" and f"def {_FUNCTION}(" in source:
            wanted: list[ast.stmt] = [
                node
                for node in ast.parse(source).body
                if isinstance(node, ast.FunctionDef) and node.name == _FUNCTION
            ]
            names: dict[str, Any] = {"torch": torch, "nn": nn}
            exec(compile(ast.Module(wanted, []), _FILE, "exec"), names)
            return names[_FUNCTION]
    raise ValueError(f"{_FILE} defines no {_FUNCTION}")


def load(path: Path | None) -> Notebook:
    """From a checkout of ``https://github.com/jeromepl/enorm-reproducibility``."""
    if path is None:
        raise ValueError("the notebook is not part of this project: give --enorm-impl-path")
    return Notebook(path)
