"""The energy as a convex function of log scales, written down a second time for scipy.

With ``z = log d`` and masses ``M[i, j] = Σ |W[i, j, ...]|^p`` the energy of a chain is
``Σ_k c_k Σ_ij M_k[i, j] exp(p (z_k[i] − z_(k−1)[j]))``; inputs and outputs have z = 0, and so have
the rows in front of a BatchNorm, whose weight is one more diagonal term.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import optimize
from torch import nn

from properties.implementation import current
from properties.specs import weighted

Array = NDArray[np.float64]


@dataclass(frozen=True)
class ConvexEnergy:
    """Sum of ``coefficient · exp(p · (incidence @ z))`` over all entries of all masses."""

    coefficients: Array
    incidence: Array
    p: float

    @property
    def size(self) -> int:
        """How many scales there are."""
        return int(self.incidence.shape[1])

    def value(self, z: Array) -> float:
        """The energy at ``z``."""
        return float(self._terms(z).sum())

    def gradient(self, z: Array) -> Array:
        """Its gradient."""
        return self.p * self.incidence.T @ self._terms(z)

    def hessian(self, z: Array) -> Array:
        """Its Hessian, positive definite where every unit is on a path from input to output."""
        return self.p**2 * (self.incidence.T * self._terms(z)) @ self.incidence

    def minimum(self) -> tuple[float, Array]:
        """Energy and ``z`` at the minimum, by scipy's exact trust-region method."""
        start = np.zeros(self.incidence.shape[1])
        scale = self.value(start)
        found = optimize.minimize(
            lambda z: self.value(z) / scale,
            start,
            jac=lambda z: self.gradient(z) / scale,
            hess=lambda z: self.hessian(z) / scale,
            method="trust-exact",
            options={"gtol": 1e-13, "maxiter": 2000},
        )
        return float(found.fun) * scale, np.asarray(found.x)

    def _terms(self, z: Array) -> Array:
        return self.coefficients * np.exp(self.p * (self.incidence @ z))


@dataclass(frozen=True)
class Term:
    """Masses of one weight, ``(rows, columns)``, and where their scales stand in z, if anywhere."""

    factor: float
    masses: Array
    rows: int | None
    columns: int | None


def from_terms(terms: Sequence[Term], size: int, p: float) -> ConvexEnergy:
    """The energy ``Σ factor · masses[i, j] · exp(p (z[rows + i] − z[columns + j]))``."""
    coefficients: list[float] = []
    incidences: list[Array] = []
    for term in terms:
        for i, j in np.ndindex(*term.masses.shape):
            incidence = np.zeros(size)
            if term.rows is not None:
                incidence[term.rows + i] += 1
            if term.columns is not None:
                incidence[term.columns + j] -= 1
            coefficients.append(term.factor * float(term.masses[i, j]))
            incidences.append(incidence)
    return ConvexEnergy(np.array(coefficients), np.array(incidences), p)


def convex_energy(model: nn.Sequential, p: float, c: float) -> ConvexEnergy:
    """The energy of a chain of :mod:`properties.specs` under ``batchnorm="affine"``.

    Without the last weight where the implementation leaves out the last pair.
    """
    layers = weighted(model)
    if not current().capabilities.last_pair:
        layers = layers[:-1]
    q = len(layers)
    offsets = np.cumsum([0] + [len(layer.weight) for layer, _ in layers[:-1]])
    terms = []
    for k, (layer, norm) in enumerate(layers, start=1):
        factor = c ** (p * (q - k))
        weight = np.abs(layer.weight.detach().double().numpy()) ** p
        before = len(layers[k - 2][0].weight) if k > 1 else 1
        masses = weight.reshape(len(weight), before, -1).sum(2)
        rows = int(offsets[k - 1]) if k < q and norm is None else None
        terms.append(Term(factor, masses, rows, int(offsets[k - 2]) if k > 1 else None))
        if norm is not None and k < q:
            gamma = np.abs(norm.weight.detach().double().numpy()) ** p
            terms.append(Term(factor, gamma[:, None], int(offsets[k - 1]), None))
    return from_terms(terms, int(offsets[-1]), p)
