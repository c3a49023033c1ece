"""Was the function kept? The measured error beside what rounding alone may cause."""

from __future__ import annotations

import contextlib
import copy
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_flatten

from enorm._blame import largest_change, watched
from enorm._examples import Arguments
from enorm._plan import Group, Plan, check_plan, tensors_of
from enorm._rounding import check_bound_options, error_bound, in_mode
from enorm._trace import trace
from enorm._unsupported import UnsupportedModel

# Draws of noise; the largest change that one of them makes is the measure.
_DRAWS = 4
# Rescaling leaves up to four roundings of a unit u on a weight where a draw leaves 2u N(0, 1), and
# every sum rounds in another way: a few times the noise. What is wrong shows at once.
_MARGIN = 16.0


@dataclass(frozen=True)
class Verification:
    """Result of :func:`verify`.

    Attributes:
        error: largest absolute difference of an output.
        bound: what rounding may cause at that output at most; None if no bound is known.
        ratio: largest difference in units of its own bound; None without a bound.
        noise: largest difference that relative noise of ``2 u N(0, 1)`` on every parameter of
            ``before`` makes, u being its dtype's unit roundoff; NaN if that is not finite.
        group: the group of hidden units that is furthest from rescaled, where to look first if the
            function was not kept; None if the plan has none.
        change: how far: the largest ``min_{d ≥ 0} ‖v − d u‖ / ‖v‖`` over its units, u and v being a
            unit's values before and after over the batch. Rounding, or 0, where all is right.
        reason: why there is no bound, else None.
    """

    error: float
    bound: float | None
    ratio: float | None
    noise: float
    group: Group | None = None
    change: float | None = None
    reason: str | None = None

    @property
    def ok(self) -> bool:
        """Whether the function was kept as far as anyone can tell.

        Every output is within its bound, if one is known, and no error exceeds 16 times the noise:
        a bound holds for all roundings at once, and grows so fast with depth that in a deep network
        anything is below it.
        """
        within = self.ratio is None or self.ratio <= 1
        return within and (self.error == 0 or self.error <= _MARGIN * self.noise)

    def __str__(self) -> str:
        bound = "no bound is known" if self.bound is None else f"bound {self.bound:.2g}"
        reason = "" if self.reason is None else f" ({self.reason})"
        text = (
            f"function {'kept' if self.ok else 'changed'}: largest error {self.error:.2g}, "
            f"{bound}{reason}, noise of rounding {self.noise:.2g}"
        )
        if self.group is None:
            return text
        producers = ", ".join(one.module for one in self.group.producers)
        return f"{text}; units of {producers} changed most, by {self.change:.2g}"


def verify(
    before: nn.Module,
    after: nn.Module,
    inputs: Any,
    *,
    plan: Plan | None = None,
    rewrites: int = 1,
    training: bool = False,
) -> Verification:
    """Compare the outputs of two models that should compute the same function.

    Args:
        before: the model before rescaling, for instance a ``copy.deepcopy``.
        after: the model after it.
        inputs: a tensor, a tuple of tensors, or tensors by the arguments' names, in the models'
            dtype and on their device; a batch, for of a single image nobody can tell which group
            was changed.
        plan: from :func:`trace` on ``before`` or a model built like it; None traces.
        rewrites: how often rescaling has written the weights of ``after`` since ``before``.
        training: compare the functions of train mode, where BatchNorm takes the batch's own
            statistics and dropout draws alike for both; the running statistics stay as they are.
            The default is eval mode.

    Both are run in full float32, without TF32, whatever ``torch.backends`` says.

    Raises:
        TypeError: a model is no module, the inputs are no tensors, or ``training`` no bool.
        ValueError: the outputs differ in shape or structure, or hold no tensor; ``rewrites`` is no
            whole number of at least 0, or the plan belongs to another model.
    """
    for model in (before, after):
        if not isinstance(model, nn.Module):
            raise TypeError(
                f"before and after must be a torch.nn.Module each, got a {type(model).__name__}"
            )
    check_bound_options(rewrites, training)
    arguments = Arguments.of(inputs)
    if plan is not None:
        tensors_of(before, check_plan(plan))
    else:
        # Untraceable models can still be compared, and of a single image the sizes may not do.
        for sizes in (inputs, None):
            with contextlib.suppress(UnsupportedModel):
                plan = trace(before, sizes)
                break
    with _Autocast() as autocast:
        old, old_form, old_units = _output(before, arguments, training, plan)
    new, new_form, new_units = _output(after, arguments, training, plan)
    if old_form != new_form or [one.shape for one in old] != [one.shape for one in new]:
        raise ValueError("before and after must return tensors alike in number and shape")
    if not any(one.numel() for one in old):
        raise ValueError("before and after return no numbers to compare")
    difference = torch.cat([_apart(a, b).flatten() for a, b in zip(old, new, strict=True)])
    worst = int(difference.nan_to_num(math.inf).argmax())
    error = difference[worst].item()
    noise = _noise(before, old, arguments, training, autocast.eps)
    group, change = largest_change(plan, old_units, new_units)
    try:
        bounds = error_bound(before, inputs, rewrites=0, training=training).flatten()
        bounds += error_bound(after, inputs, rewrites=rewrites, training=training).flatten()
    except UnsupportedModel as unknown:
        return Verification(error, None, None, noise, group, change, str(unknown))
    ratios = torch.where(difference == 0, 0.0, difference / bounds).nan_to_num(math.inf)
    return Verification(error, bounds[worst].item(), ratios.amax().item(), noise, group, change)


def _noise(
    model: nn.Module, outputs: list[Tensor], arguments: Arguments, training: bool, eps: float
) -> float:
    """The largest change that noise of their eps, or ``eps``, on the parameters makes; seeded."""
    twin = _copied(model, arguments)
    generator = torch.Generator().manual_seed(0)
    largest = 0.0
    originals = [(one, one.detach().clone()) for one in twin.parameters() if _rounds(one)]
    for _ in range(_DRAWS):
        with torch.no_grad():
            for parameter, original in originals:
                limits = torch.finfo(original.dtype)
                # Half precision would round the noise away.
                wide = original.to(torch.promote_types(original.dtype, torch.float32))
                draw = torch.randn(original.shape, generator=generator, dtype=wide.dtype)
                # A weight below the normal numbers is off by some of the smallest number.
                tiny = limits.smallest_normal * limits.eps
                spread = wide.abs().mul_(max(limits.eps, eps)).add_(tiny)
                parameter.copy_(wide + spread.mul_(draw.to(original.device)))
        changed, _, _ = _output(twin, arguments, training)
        for one, other in zip(outputs, changed, strict=True):
            if one.numel():
                largest = max(largest, _apart(one, other).amax().nan_to_num(math.inf).item())
    # Against outputs that overflow by themselves nothing can be measured.
    return largest if largest < math.inf else math.nan


def _copied(model: nn.Module, arguments: Arguments) -> nn.Module:
    try:
        return copy.deepcopy(model)
    except RuntimeError:
        # It holds what the last forward computed from its parameters, as a pruned one does.
        with torch.no_grad(), in_mode(model, False):
            arguments.call(model)
        return copy.deepcopy(model)


class _Autocast(TorchFunctionMode):
    """Notes the eps of the coarsest dtype that autocast chooses while it is there; 0 for none."""

    eps = 0.0

    def __torch_function__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        for device in ("cpu", "cuda"):
            if torch.is_autocast_enabled(device):
                self.eps = max(self.eps, torch.finfo(torch.get_autocast_dtype(device)).eps)
        return function(*args, **(kwargs or {}))


def _apart(one: Tensor, other: Tensor) -> Tensor:
    """How far entries are apart: infinities of one sign, as of a mask, are not."""
    return torch.where(one == other, 0.0, (one - other).abs())


def _rounds(parameter: Tensor) -> bool:
    return parameter.is_floating_point() and not parameter.is_meta


def _output(
    model: nn.Module, arguments: Arguments, training: bool, plan: Plan | None = None
) -> tuple[list[Tensor], Any, dict[str, Tensor]]:
    """Tensors in what the model returns, in float64, how they stand there, and its units."""
    if training:
        # A forward pass in train mode moves running statistics.
        model = _copied(model, arguments)
    with torch.no_grad(), torch.random.fork_rng(), in_mode(model, training), _full_float32():
        torch.manual_seed(0)
        with watched(model, plan) as units:
            leaves, form = tree_flatten(arguments.call(model))
    tensors = [one for one in leaves if isinstance(one, Tensor)]
    return [_real(one).double() for one in tensors], form, units


@contextlib.contextmanager
def _full_float32() -> Iterator[None]:
    """No products in TF32, which convolutions on a GPU take by default, or in bfloat16.

    No bound here reckons with as few bits.
    """
    backends: Any = torch.backends
    cuda, cudnn, mkldnn = backends.cuda, backends.cudnn, backends.mkldnn
    switches: list[tuple[Any, str, object]]
    if hasattr(cudnn, "conv"):
        operations = cuda.matmul, cudnn.conv, cudnn.rnn, mkldnn.matmul, mkldnn.conv, mkldnn.rnn
        switches = [(one, "fp32_precision", "ieee") for one in operations]
    else:  # before torch 2.9
        switches = [(one, "allow_tf32", False) for one in (cuda.matmul, cudnn)]
    were = [getattr(one, name) for one, name, _ in switches]
    try:
        for one, name, off in switches:
            setattr(one, name, off)
        yield
    finally:
        for (one, name, _), was in zip(switches, were, strict=True):
            setattr(one, name, was)


def _real(output: Tensor) -> Tensor:
    return torch.view_as_real(output.resolve_conj()) if output.is_complex() else output
