"""The plan: which tensor axes share a scale vector, and what was left out and why."""

from __future__ import annotations

import weakref
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from torch import Tensor, nn
from torch.optim import Optimizer

from enorm._modules import fingerprint

BatchNormRule = Literal["affine", "ignore"]


@dataclass(frozen=True)
class Layer:
    """A weight that the energy counts.

    Attributes:
        module: qualified module name.
        kind: class of the module, such as ``"Linear"``.
        weight: parameter name; shape ``(out, in / groups, *kernel)``, ``(in, out / groups,
            *kernel)`` for a transposed convolution, or ``(features,)`` for BatchNorm.
        bias: parameter name, or None.
        depth: k, the number of weighted layers on the longest path from an input up to and
            including this one. A BatchNorm has the depth of the layer in front of it.
        inputs: number of its input features or channels; 0 for BatchNorm.
        groups: of a grouped convolution; 1 for all others.
        transposed: whether the weight's first axis is its inputs.
    """

    module: str
    kind: str
    weight: str
    bias: str | None
    depth: int
    inputs: int
    groups: int = 1
    transposed: bool = False


@dataclass(frozen=True)
class Producer:
    """Entries of ``weight`` along its outputs, and of ``bias``, are multiplied by the scales."""

    module: str
    weight: str
    bias: str | None


@dataclass(frozen=True)
class Consumer:
    """Entries of ``weight`` along its input axis are divided by the scales.

    ``block`` consecutive entries belong to one unit: 1, or the number of positions that each
    channel has when a flatten stands between a convolution and a Linear. The first unit's entries
    begin at ``start``, which is not 0 only behind a concatenation.
    """

    module: str
    weight: str
    block: int = 1
    start: int = 0


@dataclass(frozen=True)
class Group:
    """Tensor axes that share one positive scale vector ``d`` of length ``size``.

    A chain has one producer and one consumer per group; a residual stream has many of both, and a
    weight that adds to the units it reads is both.
    """

    producers: tuple[Producer, ...]
    consumers: tuple[Consumer, ...]
    size: int


@dataclass(frozen=True)
class Skip:
    """A place that ends a group although weights stand behind it, or a weight left as it is."""

    where: str
    reason: str


@dataclass(frozen=True)
class Plan:
    """What :func:`enorm.trace` found; ``print`` it for a table.

    Attributes:
        groups: the groups in sweep order, which is the order of the producers' calls.
        skipped: where groups end, each with its reason.
        layers: every weight that the energy counts, in call order.
        batchnorm: the BatchNorm rule these groups follow.
        size_dependent: lines of the forward code that went on by the sizes of ``example_inputs``.
            The plan holds for these, and for others that take the same way.
    """

    groups: tuple[Group, ...]
    skipped: tuple[Skip, ...]
    layers: tuple[Layer, ...]
    batchnorm: BatchNormRule
    fingerprint: str = field(repr=False)
    _model: weakref.ref[nn.Module] | None = field(repr=False, compare=False)
    _other: Plan | None = field(default=None, repr=False, compare=False)
    size_dependent: tuple[str, ...] = field(default=(), compare=False)

    @property
    def depth(self) -> int:
        """q: the number of weighted layers on the longest path."""
        return max((layer.depth for layer in self.layers), default=0)

    @property
    def model(self) -> nn.Module:
        """The traced model.

        Raises:
            ReferenceError: the model no longer exists, or the plan was unpickled.
        """
        model = self._model() if self._model is not None else None
        if model is None:
            raise ReferenceError("the model this plan was traced from is gone: pass the model")
        return model

    def under(self, batchnorm: BatchNormRule) -> Plan:
        """The plan of the same model under the BatchNorm rule ``"affine"`` or ``"ignore"``.

        Raises:
            ValueError: another word was given.
        """
        if batchnorm not in ("affine", "ignore"):
            raise ValueError(f"batchnorm must be 'affine' or 'ignore', got {batchnorm!r}")
        if batchnorm == self.batchnorm:
            return self
        assert self._other is not None
        return self._other

    def check(self, model: nn.Module) -> None:
        """Raise ValueError if ``model`` is not built like the one this plan was traced from."""
        if fingerprint(model) != self.fingerprint:
            raise ValueError(
                f"plan was traced from another model than this {type(model).__name__}: "
                "its modules, their settings or parameter shapes differ; call enorm.trace on it"
            )

    def require_groups(self) -> None:
        """Raise ValueError, with the reasons, if there is nothing to rescale."""
        if not self.groups:
            reasons = "; ".join(f"{skip.where}: {skip.reason}" for skip in self.skipped)
            if not reasons:
                reasons = "no two layers follow each other"
                if not self.layers:
                    reasons = "no layer has a weight of floating-point numbers as its parameter"
                reasons = f": {reasons}"
            else:
                reasons = f" ({reasons})"
            raise ValueError(f"plan has no groups, so there is nothing to rescale{reasons}")

    def parameter_names(self) -> Iterator[str]:
        """Names of all parameters that rescaling changes, each once."""
        names: dict[str, None] = {}
        for group in self.groups:
            for producer in group.producers:
                names[producer.weight] = None
                if producer.bias is not None:
                    names[producer.bias] = None
            for consumer in group.consumers:
                names[consumer.weight] = None
        yield from names

    def __getstate__(self) -> dict[str, Any]:
        # A weak reference neither pickles nor survives into another process.
        return {**self.__dict__, "_model": None}

    def __str__(self) -> str:
        head = f"Plan: {len(self.groups)} group(s), {len(self.layers)} weight(s)"
        rows = [
            (
                str(index),
                ", ".join(producer.module for producer in group.producers),
                ", ".join(
                    consumer.module
                    + f" (blocks of {consumer.block})" * (consumer.block > 1)
                    + f" (from {consumer.start})" * (consumer.start > 0)
                    for consumer in group.consumers
                ),
                str(group.size),
            )
            for index, group in enumerate(self.groups)
        ]
        parts = [f"{head}, depth q = {self.depth}, batchnorm={self.batchnorm!r}"]
        if rows:
            parts.append(_table(("group", "multiplied by d", "divided by d", "size"), rows))
        if self.skipped:
            skips = [(skip.where, skip.reason) for skip in self.skipped]
            parts.append(_table(("skipped", "reason"), skips))
        if self.size_dependent:
            lines = "\n".join(self.size_dependent)
            parts.append(f"for inputs of sizes that take the way of example_inputs at\n{lines}")
        return "\n\n".join(parts)


def _table(head: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> str:
    widths = [max(len(row[i]) for row in [head, *rows]) for i in range(len(head))]
    rule = tuple("-" * width for width in widths)
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in [head, rule, *rows]
    )


def check_plan(plan: Any) -> Plan:
    """The plan.

    Raises:
        TypeError: it is none.
    """
    if not isinstance(plan, Plan):
        kind = type(plan).__name__
        raise TypeError(
            f"plan must be one that enorm.trace or enorm.plan_from_layers made, got {kind}"
            + ("; an optimizer is given as optimizer=..." if isinstance(plan, Optimizer) else "")
        )
    return plan


def linked(affine: Plan, ignore: Plan) -> Plan:
    """The plan under ``"affine"``, each of the two knowing the other."""
    object.__setattr__(affine, "_other", ignore)
    object.__setattr__(ignore, "_other", affine)
    return affine


def tensors_of(model: nn.Module, plan: Plan) -> Mapping[str, Tensor]:
    """The parameters that ``plan`` speaks of, by name.

    Raises:
        ValueError: ``model`` is not the traced model or built like it, or has no values.
    """
    plan.check(model)
    tensors = dict(model.named_parameters(remove_duplicate=False))
    for name in plan.parameter_names():
        if tensors[name].is_meta:
            raise ValueError(
                f"parameter {name!r} is on the meta device, without values: give the model its "
                "values first"
            )
    return tensors
