"""From a model to a plan: its forward code is recorded, and a walk follows each hidden unit."""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Sequence
from typing import Any

from torch import nn

from enorm._graph import check_kind, record
from enorm._modules import EXCLUDED, fingerprint, unusable
from enorm._plan import Plan, linked
from enorm._unsupported import UnsupportedModel
from enorm._walk import Walk


def trace(
    model: nn.Module,
    example_inputs: Any = None,
    *,
    strict: bool = False,
    exclude: Sequence[str] = (),
) -> Plan:
    """Find which axes of which weights may share a scale without changing the model's function.

    The forward code is traced symbolically (``torch.fx``) in eval and in train mode, and a group
    has to hold in both. Arguments keep defaults that are no tensors, unless ``example_inputs`` has
    them. Code that branches on sizes goes the way that those of ``example_inputs`` take, and
    ``plan.size_dependent`` says where; what else it branches on but the model's mode and such
    arguments is seen as it runs for a symbolic input. Code that draws random numbers itself is
    refused.

    A layer's rows start a group; operations that are provably positively homogeneous and keep
    units apart carry it on; layers that read it end it. Everything else is a wall: groups end
    there and ``plan.skipped`` says why.

    Args:
        model: the network. Nothing in it is changed or run on data.
        example_inputs: a tensor, a tuple of tensors or tensors by argument, used only for their
            shapes. Without it inputs are taken as batched: ``(N, features)`` where BatchNorm or a
            flatten follows a Linear, ``(N, channels, *positions)`` in front of a convolution.
        strict: raise on the first wall instead of listing it.
        exclude: names of modules whose parameters stay untouched. Naming the last layer leaves
            out the last pair, as the authors' released code does.

    Returns:
        The plan. One without groups is no error here.

    Raises:
        UnsupportedModel: the forward code cannot be traced or is not what a call runs,
            ``example_inputs`` do not fit it, or ``strict`` and there is a wall.
        ValueError: ``exclude`` names no module of the model.
        TypeError: ``model``, ``example_inputs`` or ``exclude`` is something else.
    """
    check_kind(model)
    if isinstance(exclude, str):
        raise TypeError(f"exclude must be a list of module names, got the string {exclude!r}")
    if not isinstance(exclude, Iterable):
        raise TypeError(f"exclude must be a list of module names, got {type(exclude).__name__}")
    exclude = tuple(exclude)
    modules = dict(model.named_modules(remove_duplicate=False))
    for name in exclude:
        if name not in modules:
            raise ValueError(f"exclude names {name!r}, which is no module of the model")
    recordings = record(model, example_inputs)
    reasons = unusable(model, recordings, frozenset(exclude))
    print_ = fingerprint(model)
    reference = weakref.ref(model)
    asked = tuple(dict.fromkeys(line for recording in recordings for line in recording.asked))
    plans = {}
    for rule in ("affine", "ignore"):
        walk = Walk(model, rule, reasons)
        for recording in recordings:
            walk.follow(recording)
        groups, skipped, layers = walk.result()
        plans[rule] = Plan(groups, skipped, layers, rule, print_, reference, size_dependent=asked)
    plan = linked(plans["affine"], plans["ignore"])
    walls = [skip for skip in plan.skipped if skip.reason != EXCLUDED]
    if strict and walls:
        raise UnsupportedModel(f"{walls[0].where}: {walls[0].reason}")
    return plan
