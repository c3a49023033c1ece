"""The same minimum by ``scipy.optimize``: energy, gradient and Hessian over log scales.

Nothing is shared with :mod:`enorm`: with ``t = p log d`` and ``B_k[i, j] = |W_k[i, j]|^p exp(t_i −
t_j)`` the energy is ``Σ B``, its gradient row sums minus column sums.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import optimize
from torch import nn

Array = NDArray[np.float64]

METHODS = ["L-BFGS-B", "Newton-CG", "trust-exact"]


@dataclass(frozen=True)
class Chain:
    """The energy of a chain of Linear layers without biases, p = 2, c = 1."""

    masses: tuple[Array, ...]

    @classmethod
    def of(cls, model: nn.Module) -> Chain:
        """From a model's weights."""
        weights = [parameter for parameter in model.parameters() if parameter.dim() == 2]
        return cls(tuple(weight.detach().double().square().numpy() for weight in weights))

    @property
    def ends(self) -> list[int]:
        """Where each hidden layer's scales stand in ``t``."""
        return [0, *itertools.accumulate(len(mass) for mass in self.masses[:-1])]

    def _split(self, t: Array) -> list[Array]:
        first, last = np.zeros(self.masses[0].shape[1]), np.zeros(len(self.masses[-1]))
        return [first, *np.split(t, self.ends[1:-1]), last]

    def value_and_gradient(self, t: Array) -> tuple[float, Array]:
        """Both from one pass: the row sums of B add up to the energy."""
        scales = self._split(t)
        total, gradients = 0.0, [np.zeros_like(one) for one in scales]
        for k, mass in enumerate(self.masses):
            up, down = np.exp(scales[k + 1]), np.exp(-scales[k])
            rows = up * (mass @ down)
            total += float(rows.sum())
            gradients[k + 1] += rows
            gradients[k] -= down * (mass.T @ up)
        return total, np.concatenate(gradients[1:-1])

    def hessian_product(self, t: Array, v: Array) -> Array:
        """``H v``."""
        scales, vectors = self._split(t), self._split(v)
        vectors[0], vectors[-1] = 0 * vectors[0], 0 * vectors[-1]
        products = [np.zeros_like(one) for one in scales]
        for k, mass in enumerate(self.masses):
            up, down = np.exp(scales[k + 1]), np.exp(-scales[k])
            products[k + 1] += up * ((mass @ down) * vectors[k + 1] - mass @ (down * vectors[k]))
            products[k] += down * ((mass.T @ up) * vectors[k] - mass.T @ (up * vectors[k + 1]))
        return np.concatenate(products[1:-1])

    def hessian(self, t: Array) -> Array:
        """Dense."""
        scales, ends = self._split(t), self.ends
        found = np.zeros((ends[-1], ends[-1]))
        for k, mass in enumerate(self.masses):
            b = np.exp(scales[k + 1])[:, None] * mass * np.exp(-scales[k])
            rows = slice(*ends[k : k + 2]) if k < len(self.masses) - 1 else None
            columns = slice(*ends[k - 1 : k + 1]) if k > 0 else None
            if rows is not None:
                found[rows, rows] += np.diag(b.sum(1))
            if columns is not None:
                found[columns, columns] += np.diag(b.sum(0))
            if rows is not None and columns is not None:
                found[rows, columns] -= b
                found[columns, rows] -= b.T
        return found


def minimise(model: nn.Module, method: str) -> tuple[int, Callable[[], None]]:
    """Iterations of a scipy method, and a call that rescales ``model`` to where it ended."""
    chain = Chain.of(model)
    start = np.zeros(chain.ends[-1])
    # Diagonals of the Hessian near 1: scipy compares curvatures with absolute constants.
    scale = chain.value_and_gradient(start)[0] / len(start)

    def objective(t: Array) -> tuple[float, Array]:
        value, gradient = chain.value_and_gradient(t)
        return value / scale, gradient / scale

    options: dict[str, Any] = {"maxiter": 5000}
    extra: dict[str, Any] = {}
    if method == "L-BFGS-B":
        options |= {"maxfun": 20_000, "ftol": 0.0, "gtol": 1e-15, "maxcor": 20}
    elif method == "Newton-CG":
        options |= {"xtol": 1e-14}
        extra["hessp"] = lambda t, v: chain.hessian_product(t, v) / scale
    else:
        options |= {"gtol": 1e-15}
        extra["hess"] = lambda t: chain.hessian(t) / scale
    with np.errstate(all="ignore"):
        found = optimize.minimize(
            objective, start, jac=True, method=method, options=options, **extra
        )
    scales = chain._split(np.asarray(found.x) / 2)

    @torch.no_grad()
    def apply() -> None:
        weights = [parameter for parameter in model.parameters() if parameter.dim() == 2]
        for weight, before, after in zip(weights, scales, scales[1:], strict=False):
            weight.mul_(torch.from_numpy(np.exp(after))[:, None])
            weight.mul_(torch.from_numpy(np.exp(-before)))

    return int(found.nit), apply
