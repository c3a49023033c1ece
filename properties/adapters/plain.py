"""Algorithm 1 as a short loop over an ``nn.Sequential``: the smallest useful adapter.

A pattern for adapters of other implementations, and what a careful implementation with ordinary
arithmetic achieves: :mod:`properties.meta` holds the suite's tolerances against it.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from properties.implementation import Capabilities, Implementation, Order, Rule
from properties.specs import weighted


@torch.no_grad()
def cycle_(
    model: nn.Sequential, p: float, c: float, accumulate: torch.dtype = torch.float64
) -> None:
    """One cycle in place, BatchNorm under the exact rule; norms in ``accumulate``."""
    for (producer, batchnorm), (consumer, _) in itertools.pairwise(weighted(model)):
        made = producer if batchnorm is None else batchnorm
        units = len(made.weight)
        rows = made.weight.to(accumulate).reshape(units, -1)
        # (out, units · block, *kernel): all entries that one unit feeds.
        columns = consumer.weight.to(accumulate).unflatten(1, (units, -1)).transpose(0, 1)
        d = (_norms(columns.reshape(units, -1), p) / _norms(rows, p) / c).sqrt()
        d = torch.where(d.isfinite() & (d > 0), d, 1.0)
        for parameter in (made.weight, made.bias):
            if parameter is not None:
                parameter.copy_(parameter * d.view(-1, *[1] * (parameter.dim() - 1)))
        inverse = (1 / d).repeat_interleave(consumer.weight.shape[1] // units)
        consumer.weight.copy_(
            consumer.weight * inverse.view(-1, *[1] * (consumer.weight.dim() - 2))
        )


def _norms(matrix: Tensor, p: float) -> Tensor:
    return matrix.abs().pow(p).sum(1).pow(1 / p)


class Plain(Implementation):
    """The loop, with what it can do."""

    name = "plain loop"
    version = "1"
    capabilities = Capabilities(batchnorm=("affine",))

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
        """A function that applies one cycle each time it is called."""
        return lambda: cycle_(model, p, c)


def load(path: Path | None) -> Plain:
    """What ``--enorm-impl=properties.adapters.plain:load`` names."""
    return Plain()
