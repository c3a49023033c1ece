"""Implementations that the suite has to see through, and ones that it must not ask too much of.

Each attribute is a ``load`` for ``--enorm-impl``. They are this project's own but for one thing:
what a careless implementation may do wrong outside the weights of one model in eval mode, or a
refusal of everything that is not declared.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from properties import oracle
from properties.adapters.ours import Ours
from properties.implementation import Balanced, Capabilities, Implementation, Order, Rule
from properties.specs import weighted

Load = Callable[[Path | None], Implementation]
Step = Callable[[], None]
Around = Callable[[nn.Sequential, Optimizer | None, Step], None]


def _around(what: str, change: Around, **declared: Any) -> Load:
    """Ours, with ``change(model, optimizer, step)`` in the place of each cycle."""

    class Pretender(Ours):
        name = what
        capabilities = replace(Ours.capabilities, **declared)

        def stepper(
            self, model: nn.Sequential, optimizer: Optimizer | None, **options: Any
        ) -> Step:
            step = super().stepper(model, optimizer, **options)
            return lambda: change(model, optimizer, step)

    return lambda _: Pretender()


def _in_eval_mode_only(model: nn.Sequential, optimizer: Optimizer | None, step: Step) -> None:
    if not model.training:
        step()


def _in_full_precision_only(model: nn.Sequential, optimizer: Optimizer | None, step: Step) -> None:
    if next(model.parameters()).element_size() > 2:
        step()


def _narrow_layers_only(model: nn.Sequential, optimizer: Optimizer | None, step: Step) -> None:
    if max(len(layer.weight) for layer, _ in weighted(model)) <= 512:
        step()


def _thawing(model: nn.Sequential, optimizer: Optimizer | None, step: Step) -> None:
    step()
    model.requires_grad_(True)


def _zeroing_gradients(model: nn.Sequential, optimizer: Optimizer | None, step: Step) -> None:
    step()
    model.zero_grad()


def _switching_modes(model: nn.Sequential, optimizer: Optimizer | None, step: Step) -> None:
    was = model.training
    model.eval()
    step()
    model.train(was)


def _running_the_model(model: nn.Sequential, optimizer: Optimizer | None, step: Step) -> None:
    step()
    if model.training:
        for _, norm in weighted(model):
            if norm is not None and norm.training and norm.running_mean is not None:
                norm.running_mean.mul_(0.9)


def _in_new_memory(model: nn.Sequential, optimizer: Optimizer | None, step: Step) -> None:
    step()
    for parameter in model.parameters():
        parameter.data = parameter.data.clone()


def _resetting_steps(model: nn.Sequential, optimizer: Optimizer | None, step: Step) -> None:
    step()
    for state in optimizer.state.values() if optimizer is not None else ():
        if "step" in state:
            state["step"] = torch.zeros_like(torch.as_tensor(state["step"]))


def _dropping_state_of_biases(
    model: nn.Sequential, optimizer: Optimizer | None, step: Step
) -> None:
    step()
    for parameter, state in optimizer.state.items() if optimizer is not None else ():
        if parameter.dim() == 1:
            state.clear()


def _setting_batchnorm(model: nn.Sequential, optimizer: Optimizer | None, step: Step) -> None:
    step()
    for _, norm in weighted(model):
        if norm is not None:
            norm.momentum = 0.0


def _spreading_infinity(model: nn.Sequential, optimizer: Optimizer | None, step: Step) -> None:
    step()
    with torch.no_grad():
        for layer, _ in weighted(model):
            odd = ~layer.weight.flatten(1).isfinite().all(1)
            layer.weight[odd] *= 2


def _stopping_zeros(model: nn.Sequential, optimizer: Optimizer | None, step: Step) -> None:
    step()
    for parameter, state in optimizer.state.items() if optimizer is not None else ():
        if "momentum_buffer" in state:
            state["momentum_buffer"][parameter == 0] = 0.0


in_eval_mode_only = _around("in eval mode only", _in_eval_mode_only)
in_full_precision_only = _around("in full precision only", _in_full_precision_only)
narrow_layers_only = _around("narrow layers only", _narrow_layers_only)
thawing = _around("thawing", _thawing)
zeroing_gradients = _around("zeroing gradients", _zeroing_gradients)
switching_modes = _around("switching modes", _switching_modes)
running_the_model = _around("running the model", _running_the_model)
in_new_memory = _around("in new memory", _in_new_memory)
resetting_steps = _around("resetting steps", _resetting_steps, momentum=("Adam",))
dropping_state_of_biases = _around(
    "dropping state of biases", _dropping_state_of_biases, momentum=("Adam",)
)
setting_batchnorm = _around("setting BatchNorm", _setting_batchnorm)
spreading_infinity = _around("spreading infinity", _spreading_infinity)
stopping_zeros = _around("stopping zeros", _stopping_zeros, momentum=("SGD",))


class _Leaving(Ours):
    name = "leaving the minimum"

    def stepper(self, model: nn.Sequential, optimizer: Optimizer | None, **options: Any) -> Step:
        step = super().stepper(model, optimizer, **options)
        is_settled = oracle.residual(model, options["p"], options["c"]) <= 1e-12

        def leave() -> None:
            step()
            if is_settled:
                with torch.no_grad():
                    next(model.parameters()).mul_(1.001)

        return leave


def leaving(_: Path | None) -> Implementation:
    """Right until somebody begins at the minimum."""
    return _Leaving()


class _NeverCycling(Ours):
    name = "never cycling when preconditioned"

    def preconditioned(self, model: nn.Sequential, optimizer: Optimizer, **options: Any) -> Step:
        return lambda: None


def never_cycling(_: Path | None) -> Implementation:
    """Biases learn right where no weight ever moves."""
    return _NeverCycling()


class _Boasting(Ours):
    name = "boasting"

    def balance(self, model: nn.Sequential, **options: Any) -> Balanced:
        return replace(super().balance(model, **options), converged=True)


def boasting(_: Path | None) -> Implementation:
    """Every solver says that it has converged."""
    return _Boasting()


class _Miscounting(Ours):
    name = "miscounting"

    def balance(self, model: nn.Sequential, **options: Any) -> Balanced:
        return replace(super().balance(model, **options), cycles=1)


def miscounting(_: Path | None) -> Implementation:
    """Every solver says that it took one cycle."""
    return _Miscounting()


class _Endless(Ours):
    name = "endless"

    def balance(self, model: nn.Sequential, *, max_cycles: int, **options: Any) -> Balanced:
        super().balance(model, max_cycles=1, **options)
        found = super().balance(model, max_cycles=max_cycles, **options)
        return replace(found, rewrites=2)


def endless(_: Path | None) -> Implementation:
    """A cycle more than it was allowed."""
    return _Endless()


class _OftenStoring(Ours):
    name = "often storing"

    def balance(
        self, model: nn.Sequential, *, tol: float, max_cycles: int, **options: Any
    ) -> Balanced:
        found = Balanced(0, False)
        while not found.converged and found.cycles < max_cycles:
            one = super().balance(model, tol=tol, max_cycles=1, **options)
            found = Balanced(found.cycles + 1, one.converged)
        return found


def often_storing(_: Path | None) -> Implementation:
    """Right, with a rounding of all weights in every cycle."""
    return _OftenStoring()


class _Strict(Ours):
    """Ours, refusing what is not declared."""

    name = "strict"

    def __init__(self, capabilities: Capabilities) -> None:
        self.capabilities = capabilities

    def _check(
        self, model: nn.Sequential, *, p: float, c: float, order: Order, batchnorm: Rule
    ) -> None:
        able = self.capabilities
        layers = [layer for layer, _ in weighted(model)]
        norms = [norm for _, norm in weighted(model) if norm is not None]
        axes = {layer.weight.dim() - 2 for layer in layers} - {0}
        allowed = able.mixed if isinstance(layers[-1], nn.Linear) else able.convolution
        dtypes = {str(one.dtype).removeprefix("torch.") for one in model.parameters()}
        asked = {
            f"p={p}": able.p is None or p in able.p,
            f"c={c}": able.c or c == 1,
            f"order={order}": order in able.orders,
            f"batchnorm={batchnorm}": not norms or batchnorm in able.batchnorm,
            "biases": able.biases or all(layer.bias is None for layer in layers[:-1]),
            f"convolutions of {axes}": axes <= set(allowed),
            f"dtypes {dtypes}": dtypes <= set(able.dtypes),
        }
        for what, is_declared in asked.items():
            if not is_declared:
                raise ValueError(f"{what} is asked for, and not declared")

    def stepper(self, model: nn.Sequential, optimizer: Optimizer | None, **options: Any) -> Step:
        self._check(model, **options)
        return super().stepper(model, optimizer, **options)

    def preconditioned(self, model: nn.Sequential, optimizer: Optimizer, **options: Any) -> Step:
        self._check(model, **options)
        return super().preconditioned(model, optimizer, **options)

    def balance(self, model: nn.Sequential, *, p: float, c: float, **options: Any) -> Balanced:
        self._check(model, p=p, c=c, order=self.capabilities.orders[0], batchnorm="affine")
        if options["solver"] not in self.capabilities.solvers:
            raise ValueError(f"solver {options['solver']} is asked for, and not declared")
        return super().balance(model, p=p, c=c, **options)


def _strict(**declared: Any) -> Load:
    return lambda _: _Strict(Capabilities(**declared))


strict_plain = _strict(
    p=(4.0,), c=False, biases=False, convolution=(), mixed=(), dtypes=("float32",)
)
strict_images = _strict(
    p=(1.0,), orders=("jacobi",), convolution=(), mixed=(2,), precondition_bias=True
)
strict_half = _strict(
    biases=False,
    convolution=(2,),
    mixed=(),
    dtypes=("float64", "bfloat16"),
    momentum=("SGD",),
    solvers=("sor",),
    power_of_two=True,
)
