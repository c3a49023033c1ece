"""Which operations are positively homogeneous, and along which axes they keep units apart.

An operation ``f`` commutes with a scale ``d > 0`` per unit when ``f(d ⊙ x) = d ⊙ f(x)``. What does
not stand here is a wall: absence of proof ends a group, never a guess.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

# Elementwise with one factor per element that does not depend on the sign-preserving scale, so
# they keep any axis. Dropout multiplies by 0 or 1/(1 − rate); the factor depends on the position.
_ELEMENTWISE_MODULES: frozenset[type[nn.Module]] = frozenset(
    {
        nn.ReLU,
        nn.LeakyReLU,
        nn.Identity,
        nn.Dropout,
        nn.Dropout1d,
        nn.Dropout2d,
        nn.Dropout3d,
    }
)
_ELEMENTWISE_FUNCTIONS: frozenset[Any] = frozenset(
    {
        F.relu,
        torch.relu,
        torch.relu_,
        F.leaky_relu,
        F.dropout,
        F.dropout1d,
        F.dropout2d,
        F.dropout3d,
    }
)
_ELEMENTWISE_METHODS: frozenset[str] = frozenset({"relu", "relu_", "contiguous", "clone"})

# A maximum or a mean over positions of one channel commutes with that channel's scale. The number
# is how many trailing axes the window covers: the channel axis has to stand right before them.
_POOLING_MODULES: dict[type[nn.Module], int] = {
    module: axes
    for axes, modules in {
        1: (nn.MaxPool1d, nn.AvgPool1d, nn.AdaptiveMaxPool1d, nn.AdaptiveAvgPool1d),
        2: (nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveMaxPool2d, nn.AdaptiveAvgPool2d),
        3: (nn.MaxPool3d, nn.AvgPool3d, nn.AdaptiveMaxPool3d, nn.AdaptiveAvgPool3d),
    }.items()
    for module in modules
}
_POOLING_FUNCTIONS: dict[Any, int] = {
    function: axes
    for axes, functions in {
        1: (
            F.max_pool1d,
            torch.max_pool1d,
            F.avg_pool1d,
            F.adaptive_max_pool1d,
            F.adaptive_avg_pool1d,
        ),
        2: (
            F.max_pool2d,
            torch.max_pool2d,
            F.avg_pool2d,
            F.adaptive_max_pool2d,
            F.adaptive_avg_pool2d,
        ),
        3: (
            F.max_pool3d,
            torch.max_pool3d,
            F.avg_pool3d,
            F.adaptive_max_pool3d,
            F.adaptive_avg_pool3d,
        ),
    }.items()
    for function in functions
}

CONVOLUTIONS: dict[type[nn.Module], int] = {nn.Conv1d: 1, nn.Conv2d: 2, nn.Conv3d: 3}
BATCH_NORMS: frozenset[type[nn.Module]] = frozenset(
    {nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d}
)


def is_elementwise(operation: nn.Module | Any) -> bool:
    """Whether ``operation`` (a module, a function or a method's name) keeps every axis."""
    if isinstance(operation, nn.Module):
        return type(operation) in _ELEMENTWISE_MODULES
    if isinstance(operation, str):
        return operation in _ELEMENTWISE_METHODS
    return operation in _ELEMENTWISE_FUNCTIONS


def pooled_axes(operation: nn.Module | Any) -> int | None:
    """How many trailing axes ``operation`` pools, or None if it is no pooling."""
    if isinstance(operation, nn.Module):
        return _POOLING_MODULES.get(type(operation))
    return _POOLING_FUNCTIONS.get(operation)
