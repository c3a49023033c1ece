"""The implementation in this repository."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

from torch import nn
from torch.optim import Optimizer

import enorm
from properties.implementation import Balanced, Capabilities, Implementation, Order, Rule


class Ours(Implementation):
    """``enorm.ENorm`` and ``enorm.balance_``."""

    name = "enorm"
    version = enorm.__version__
    capabilities = Capabilities(
        orders=("cyclic", "jacobi"),
        batchnorm=("affine", "ignore"),
        momentum=(
            *("SGD", "Adam", "AdamW", "NAdam", "RAdam", "Adamax"),
            *("RMSprop", "Rprop", "Adagrad", "Adadelta", "Muon"),
        ),
        group_updates=True,
        precondition_bias=True,
        dtypes=("float64", "float32", "bfloat16", "float16"),
        solvers=("sor", "cyclic", "jacobi", "newton"),
        power_of_two=True,
    )

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
        """See the protocol."""
        return enorm.ENorm(model, optimizer, p=p, c=c, order=order, batchnorm=batchnorm).step

    def preconditioned(
        self,
        model: nn.Sequential,
        optimizer: Optimizer,
        *,
        p: float,
        c: float,
        order: Order,
        batchnorm: Rule,
    ) -> Callable[[], None]:
        """See the protocol."""
        return enorm.ENorm(
            model, optimizer, p=p, c=c, order=order, batchnorm=batchnorm, precondition_bias=True
        ).step

    def updates(
        self, model: nn.Sequential, *, p: float, c: float, batchnorm: Rule
    ) -> Iterator[None]:
        """See the protocol; a plan of one group makes a cycle of one update."""
        plan = enorm.trace(model).under(batchnorm)
        for group in plan.groups:
            enorm.ENorm(
                model, plan=replace(plan, groups=(group,)), p=p, c=c, batchnorm=batchnorm
            ).step()
            yield

    def balance(
        self,
        model: nn.Sequential,
        *,
        p: float,
        c: float,
        solver: str,
        tol: float,
        max_cycles: int,
        power_of_two: bool,
    ) -> Balanced:
        """See the protocol."""
        result = enorm.balance_(
            model,
            p=p,
            c=c,
            solver=solver,  # type: ignore[arg-type]
            tol=tol,
            max_cycles=max_cycles,
            power_of_two=power_of_two,
        )
        return Balanced(result.cycles, result.converged, rewrites=1)


def load(path: Path | None) -> Ours:
    """No path is needed."""
    return Ours()
