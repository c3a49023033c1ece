"""Which group's hidden units are furthest from a positive multiple of what they were."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor, nn

from enorm._homogeneous import CHANNEL_AXES, CONVOLUTIONS, LAYERS, TRANSPOSED
from enorm._plan import Group, Plan
from enorm._sharded import class_of


@contextlib.contextmanager
def watched(model: nn.Module, plan: Plan | None) -> Iterator[dict[str, Tensor]]:
    """Outputs of the plan's producers, by module name, while ``model`` runs inside."""
    groups = () if plan is None else plan.groups
    names = {producer.module for group in groups for producer in group.producers}
    seen: dict[str, Tensor] = {}

    def keep(name: str) -> Any:
        def hook(module: nn.Module, _: Any, output: Any) -> None:
            if isinstance(output, Tensor):
                # In-place activations behind it would overwrite it.
                seen[name] = _by_unit(module, output.detach().double())

        return hook

    # A module that calls a layer's function may do more; what it returns tells nothing then.
    handles = [
        module.register_forward_hook(keep(name))
        for name, module in model.named_modules()
        if name in names and class_of(module) in LAYERS
    ]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


def _by_unit(module: nn.Module, output: Tensor) -> Tensor:
    """``(units, values)``; a copy."""
    kind = class_of(module)
    positions = CONVOLUTIONS.get(kind, TRANSPOSED.get(kind))
    if positions is not None:
        axis = -1 - positions
    else:
        axis = -1 if kind is nn.Linear else CHANNEL_AXES.get(kind, 1)
    units = output.movedim(axis, 0)
    return units.reshape(len(units), -1).clone()


def largest_change(
    plan: Plan | None, old: Mapping[str, Tensor], new: Mapping[str, Tensor]
) -> tuple[Group | None, float | None]:
    """The group whose units changed most, and how much.

    The values u and v of a unit over a batch, before and after, are compared as
    ``min_{d >= 0} ‖v − d u‖ / ‖v‖``: the sine of the angle between them, or 1 beyond a right angle.
    It is 0 where the unit was rescaled and nothing else. One value per unit always is a multiple
    of another of its sign, so it takes a batch to tell.
    """
    worst: tuple[Group | None, float | None] = (None, None)
    for group in () if plan is None else plan.groups:
        changes = [
            _change(old[one.module], new[one.module])
            for one in group.producers
            if one.module in old and one.module in new
        ]
        if changes and (worst[1] is None or max(changes) > worst[1]):
            worst = group, max(changes)
    return worst


def _change(u: Tensor, v: Tensor) -> float:
    if u.shape != v.shape or u.numel() == 0:
        return 1.0 if u.shape != v.shape else 0.0
    # Norms of one, so that squares stay in range; a unit of zeros stays what it is.
    u, v = (one / one.abs().amax(1, keepdim=True).clamp_min(1e-300) for one in (u, v))
    d = (u * v).sum(1).clamp_min(0) / u.square().sum(1).clamp_min(1e-300)
    # The difference itself, for of near-parallel vectors a cosine says only half of the digits.
    off = (v - d[:, None] * u).norm(dim=1) / v.norm(dim=1).clamp_min(1e-300)
    return float(off.nan_to_num(1.0).amax())
