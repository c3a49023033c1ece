"""Where units stand after operations that pick, remove, add or merge whole axes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from torch import fx, nn

from enorm._homogeneous import ADAPTIVE, REDUCTIONS, SQUEEZES, is_elementwise, pooled_axes
from enorm._units import Signal


def from_the_end(axes: Any, count: int | None) -> list[int]:
    """Axes as negative numbers; empty if any is no number, or cannot be told among ``count``."""
    found = list(axes) if isinstance(axes, (list, tuple)) else [axes]
    if not all(isinstance(axis, int) for axis in found):
        return []
    if count is None:
        return found if all(axis < 0 for axis in found) else []
    if not all(-count <= axis < count for axis in found):
        return []
    return [axis if axis < 0 else axis - count for axis in found]


def without(signal: Signal, dimensions: int | None, axes: Sequence[int]) -> Signal:
    """``signal`` of ``dimensions`` axes without ``axes``, none of which is that of the units."""
    behind = sum(axis > signal.axis for axis in axes)
    left = None if dimensions is None else dimensions - len(axes)
    return replace(signal, axis=signal.axis + behind, dimensions=left)


def widened(signal: Signal, dimensions: int, axis: int) -> Signal:
    """``signal`` of ``dimensions`` axes with one more, which then is ``axis``, from the end."""
    return replace(signal, axis=signal.axis - (axis > signal.axis - 1), dimensions=dimensions + 1)


def is_single(
    node: fx.Node, axis: int, count: int | None, modules: Mapping[fx.Node, nn.Module]
) -> bool:
    """Whether ``axis`` of ``node``'s value, of unknown shape, has one position by what made it.

    Args:
        node: a value.
        axis: from the end.
        count: how many axes it has, as far as is known.
        modules: what calls stand for.
    """
    operation: Any = modules.get(node, node.target)
    axes = pooled_axes(operation) or 0
    if node in modules:
        sizes = getattr(operation, "output_size", None)
        adaptive = type(operation) in ADAPTIVE
    else:
        sizes = argument(node, 1, "output_size", None)
        adaptive = node.target in ADAPTIVE
    if adaptive and -axis <= axes:
        each = sizes if isinstance(sizes, (list, tuple)) else [sizes] * axes
        return len(each) == axes and bool(each[axis] == 1)
    if not node.all_input_nodes:
        return False
    source = node.all_input_nodes[0]
    if node.target in SQUEEZES:
        # Followed without a shape, so that all the axes it names are gone.
        named = argument(node, 1, "dim", None)
        many = len(named) if isinstance(named, (list, tuple)) else 1
        before = None if count is None else count + many
        gone = from_the_end(named, before)
        left = [one for one in range(axis - many, 0) if one not in gone]
        return is_single(source, left[axis], before, modules)
    kept = node.target in REDUCTIONS and argument(node, 2, "keepdim", False) is True
    if kept and axis in from_the_end(argument(node, 1, "dim", node.kwargs.get("axis")), count):
        return True
    same = kept or is_elementwise(operation)
    return same and is_single(source, axis, count, modules)


def argument(node: fx.Node, position: int, name: str, default: Any) -> Any:
    """What a call was given, by position or by name."""
    if len(node.args) > position:
        return node.args[position]
    return node.kwargs.get(name, default)


def indexed(signal: Signal, dimensions: int, entries: Sequence[Any]) -> Signal | None:
    """``signal`` of ``dimensions`` axes behind ``x[entries]``: numbers, slices, None and ``...``.

    None where that picks among units or among samples, or is something else.
    """
    plain = [one for one in entries if one is None or one is Ellipsis or type(one) in (int, slice)]
    given = sum(type(one) in (int, slice) for one in plain)
    if len(plain) < len(entries) or given > dimensions:
        return None
    if not any(one is Ellipsis for one in plain):
        plain.append(Ellipsis)
    place = next(index for index, one in enumerate(plain) if one is Ellipsis)
    plain[place : place + 1] = [slice(None)] * (dimensions - given)
    # Of each axis that is left, which it was, if it was there.
    left: list[int | None] = []
    source = 0
    for one in plain:
        if one is None:
            left.append(None)
            continue
        axis = source - dimensions
        source += 1
        if axis == signal.axis and one != slice(None):
            return None
        if one is Ellipsis or (type(one) is int and axis == -dimensions):
            return None
        if type(one) is slice:
            left.append(axis)
    return replace(signal, axis=left.index(signal.axis) - len(left), dimensions=len(left))
