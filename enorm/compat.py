"""The signature of the authors' released class, ``facebookresearch/enorm``, on this implementation.

A training script that says ``from enorm import ENorm`` for theirs says
``from enorm.compat import ENorm`` for this one. Where theirs is right, both leave the same weights;
where they differ:

==============================  ==============================  ================================
case                            theirs                          here
==============================  ==============================  ================================
biases of rescaled layers       stay: the function changes      scaled: the function is kept
momentum, ``"linear"``          stays as it was                 goes with the weights
momentum, ``"conv"``            KeyError before the first step  goes along once it is there
p, ``"conv"``                   always 2                        as given
a unit without weights          NaN, then in all neighbours     left alone
Linear behind a convolution     not possible                    blocks of columns
``model_type``                  required                        told from the shapes if left out
==============================  ==============================  ================================

As theirs does, it runs the groups in Jacobi order, leaves the last layer out, takes the weights in
the order they are given for a chain, and looks through BatchNorm. For anything else, and for
the choice of these, use :class:`enorm.ENorm`.
"""

from __future__ import annotations

import itertools
import weakref
from collections.abc import Iterable
from typing import Literal

from torch import nn
from torch.optim import Optimizer

from enorm._modules import fingerprint
from enorm._plan import Consumer, Group, Layer, Plan, Producer, linked
from enorm._stepper import ENorm as _ENorm

_KINDS = {2: "Linear", 3: "Conv1d", 4: "Conv2d", 5: "Conv3d"}


class ENorm:
    """One cycle per :meth:`step`, in the authors' order and over the authors' groups.

    ``d = sqrt(R / (c L))`` for every pair of neighbours but the last, all from the weights as they
    were before the step (Stock et al. 2019, Algorithm 1, in Jacobi order).

    Args:
        named_params: ``model.named_parameters()``. Weights of two and more axes make the chain,
            in this order; names with "bn" in them, and vectors, are passed over.
        optimizer: as :class:`enorm.ENorm` takes them; its state goes along.
        model_type: ``"linear"`` or ``"conv"`` to check the weights against, or None.
        c: depth factor.
        p: exponent of the norm.

    Raises:
        ValueError: ``named_params`` is no pairs of names and parameters, ``model_type`` is another
            word or does not fit, neighbours do not fit each other, or there are fewer than three
            weights, so that nothing would be balanced.
    """

    def __init__(
        self,
        named_params: Iterable[tuple[str, nn.Parameter]],
        optimizer: Optimizer | None,
        model_type: Literal["linear", "conv"] | None = None,
        c: float = 1,
        p: float = 2,
    ) -> None:
        if model_type not in ("linear", "conv", None):
            raise ValueError(f"model_type must be 'linear' or 'conv', got {model_type!r}")
        try:
            parameters = dict(named_params)
        except (TypeError, ValueError):
            parameters = {}
        fit = all(
            isinstance(name, str) and isinstance(parameter, nn.Parameter)
            for name, parameter in parameters.items()
        )
        if not (parameters and fit):
            raise ValueError(
                "named_params must be pairs of names and parameters: pass model.named_parameters()"
            )
        weights = [
            name
            for name, parameter in parameters.items()
            if "weight" in name and "bn" not in name and parameter.dim() > 1
        ]
        for name in weights:
            if parameters[name].dim() not in _KINDS:
                raise ValueError(f"{name!r} has {parameters[name].dim()} axes, 2 to 5 are known")
            if model_type is not None and (parameters[name].dim() == 2) != (model_type == "linear"):
                shape = tuple(parameters[name].shape)
                raise ValueError(f"model_type is {model_type!r}, but {name!r} has shape {shape}")
        if len(weights) < 3:
            raise ValueError(
                f"named_params has {len(weights)} weight(s); the last one is left out, so at least "
                "three are needed"
            )
        self._holder = _hold(parameters)
        plan = _chain(parameters, weights, self._holder)
        self._stepper = _ENorm(self._holder, optimizer, plan=plan, p=p, c=c, order="jacobi")

    def step(self) -> None:
        """Apply one cycle; call it after ``optimizer.step()``."""
        self._stepper.step()


def _hold(parameters: dict[str, nn.Parameter]) -> nn.Module:
    """Modules that hold the parameters under their names."""
    holder = nn.Module()
    for name, parameter in parameters.items():
        *path, leaf = name.split(".")
        module = holder
        for part in path:
            if part not in module._modules:
                module.add_module(part, nn.Module())
            module = module.get_submodule(part)
        module.register_parameter(leaf, parameter)
    return holder


def _chain(parameters: dict[str, nn.Parameter], weights: list[str], holder: nn.Module) -> Plan:
    layers, groups = [], []
    for depth, name in enumerate(weights, start=1):
        weight = parameters[name]
        bias = name.removesuffix("weight") + "bias"
        module = name.rpartition(".")[0]
        layers.append(
            Layer(
                module,
                _KINDS[weight.dim()],
                name,
                bias if bias in parameters else None,
                depth,
                weight.shape[1],
            )
        )
    for before, after in itertools.pairwise(layers[:-1]):
        size = len(parameters[before.weight])
        if after.inputs % size:
            raise ValueError(
                f"{after.weight!r} reads {after.inputs} values, no multiple of the {size} units of "
                f"{before.weight!r}: the weights are no chain in this order; use enorm.ENorm(model)"
            )
        groups.append(
            Group(
                (Producer(before.module, before.weight, before.bias),),
                (Consumer(after.module, after.weight, after.inputs // size),),
                size,
            )
        )

    def plan(rule: Literal["affine", "ignore"]) -> Plan:
        print_, reference = fingerprint(holder), weakref.ref(holder)
        return Plan(tuple(groups), (), tuple(layers), rule, print_, reference)

    return linked(plan("affine"), plan("ignore"))
