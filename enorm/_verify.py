"""Was the function kept? The measured error beside what rounding alone may cause."""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from enorm._graph import UnsupportedModel
from enorm._rounding import error_bound, in_mode


@dataclass(frozen=True)
class Verification:
    """Result of :func:`verify`.

    Attributes:
        error: largest absolute difference of an output.
        bound: what rounding may cause at that output; None if no bound is known for the network.
        ratio: largest difference in units of its own bound; None without a bound.
        reason: why there is no bound, else None.
    """

    error: float
    bound: float | None
    ratio: float | None
    reason: str | None = None

    @property
    def ok(self) -> bool | None:
        """Whether every output is within its bound; None if no bound is known."""
        return None if self.ratio is None else self.ratio <= 1


def verify(
    before: nn.Module,
    after: nn.Module,
    inputs: Any,
    *,
    rewrites: int = 1,
    training: bool = False,
) -> Verification:
    """Compare the outputs of two models that should compute the same function.

    Args:
        before: the model before rescaling, for instance a ``copy.deepcopy``.
        after: the model after it.
        inputs: a tensor or a tuple of tensors, in the models' dtype and on their device.
        rewrites: how often rescaling has written the weights of ``after`` since ``before``.
        training: compare the functions of train mode, where BatchNorm takes the batch's own
            statistics; the running ones stay as they are. The default is eval mode.

    Raises:
        ValueError: the outputs differ in shape or are not single tensors.
    """
    arguments = inputs if isinstance(inputs, tuple) else (inputs,)
    outputs = _output(before, arguments, training), _output(after, arguments, training)
    for output in outputs:
        if not isinstance(output, Tensor) or output.shape != outputs[0].shape:
            raise ValueError("before and after must return one tensor each, of equal shape")
    difference = (outputs[0].double() - outputs[1].double()).abs().flatten()
    worst = int(difference.nan_to_num(math.inf).argmax())
    try:
        bounds = error_bound(before, arguments, rewrites=0, training=training).flatten()
        bounds += error_bound(after, arguments, rewrites=rewrites, training=training).flatten()
    except UnsupportedModel as error:
        return Verification(difference[worst].item(), None, None, str(error))
    ratios = torch.where(difference == 0, 0.0, difference / bounds).nan_to_num(math.inf)
    return Verification(difference[worst].item(), bounds[worst].item(), ratios.amax().item())


def _output(model: nn.Module, arguments: tuple[Any, ...], training: bool) -> Any:
    with torch.no_grad():
        if training:
            # A forward pass in train mode moves running statistics.
            model = copy.deepcopy(model)
        with in_mode(model, training):
            return model(*arguments)
