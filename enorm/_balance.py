"""Rescale once, to the minimum; and the two numbers that say how far away it is."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from numbers import Integral, Real
from typing import Any

import torch
from torch import Tensor, nn

from enorm._apply import following, parameters, targets_of, write_
from enorm._descent import SOLVERS, Callback, Solver, minimise
from enorm._followers import Copy, Followers, Optimizers
from enorm._plan import BatchNormRule, Plan, check_plan, tensors_of
from enorm._precondition import check_unconditioned
from enorm._sharded import all_finite, check_sharding, is_sharded, local, rows_of
from enorm._solve import Factor, build_problem, log2_coefficient
from enorm._trace import trace


@dataclass(frozen=True)
class BalanceResult:
    """What :func:`balance_` did.

    Attributes:
        cycles: passes over all groups, or Newton steps.
        converged: whether ``residual`` is at most the tolerance.
        energy_before: ``Σ_k c^(p (q − k)) ‖W_k‖_p^p`` of the weights as they were.
        energy_after: the same of the weights as they are stored now.
        residual: the largest ``|log d|`` that one more cycle would apply, in scale space, before
            the weights were rounded to their dtype.
    """

    cycles: int
    converged: bool
    energy_before: float
    energy_after: float
    residual: float
    _backup: list[tuple[Tensor, Tensor]] = field(repr=False, compare=False)

    def undo_(self) -> None:
        """Put parameters and optimiser state back, bit for bit, as they were before."""
        _restore_(self._backup)


def balance_(
    model: nn.Module,
    plan: Plan | None = None,
    *,
    p: float = 2.0,
    c: Factor = 1.0,
    solver: Solver = "sor",
    tol: float = 1e-8,
    max_cycles: int = 1000,
    batchnorm: BatchNormRule = "affine",
    power_of_two: bool = False,
    optimizer: Optimizers | None = None,
    copies: Sequence[Copy] = (),
    callback: Callback | None = None,
) -> BalanceResult:
    """Rescale ``model`` in place to the minimum of its energy, without changing its function.

    Minimises ``E = Σ_k c^(p (q − k)) ‖W_k‖_p^p`` over positive scales, one per hidden unit, by
    cycles of exact minimisations over one group (Stock et al. 2019, Algorithm 1). Cycles work in
    float64 on scale vectors; each weight is touched once, at the end. A ``.grad`` that is there
    already becomes that of the rescaled weight.

    Args:
        model: float64, float32, bfloat16 or float16 parameters.
        plan: from :func:`trace` on this model or one built like it; None traces.
        p: exponent of the norm, positive. ``math.inf`` equalizes the ranges of neighbouring
            channels, which is known as cross-layer equalization (Nagel et al. 2019, §4.1): the
            largest entry never rises, and the result is not the only minimum.
        c: depth factor, positive; above 1 it puts weight towards the output. Or ``c_k`` itself by
            the layer's module name, 1 where none is given.
        solver: ``"cyclic"`` is Algorithm 1; ``"jacobi"`` updates all groups from the same state;
            ``"sor"`` over-relaxes each chain of q weights by ``ω = 2 / (1 + sin(π / q))``, and
            groups that form no chain by an ω that it learns from its own cycles; ``"newton"``
            relaxes until the residual is small and goes on with Newton steps, which solve a linear
            system by block Cholesky: few, and cubic in the width.
        tol: largest ``|log d|`` that one more cycle may still apply.
        max_cycles: give up after so many; the result is kept and says ``converged=False``.
        batchnorm: ``"affine"`` scales BatchNorm's weight and bias and keeps the function;
            ``"ignore"`` is the published rule, which does not keep it.
        power_of_two: use scales 2^n only, so that outputs stay equal bit for bit (barring
            overflow and underflow); always unrelaxed.
        optimizer: its state goes along; SGD, Adam, AdamW, NAdam, RAdam, Adamax, RMSprop, Rprop,
            Adagrad, Adadelta or Muon of ``torch.optim``, or one with a rule of its own
            (:func:`register_state_rule`); a list where several share the parameters.
        copies: models, or tensors by name, that average this one's parameters, such as an EMA or
            an ``AveragedModel``; they are rescaled alike.
        callback: called with a :class:`Progress` after every cycle, before any weight has changed;
            what it raises ends the call and leaves the model unchanged. ``cycle`` starts from 1
            again if the masses turn out to need a wider representation.

    Raises:
        ValueError: an argument is out of its range, the plan has no groups or belongs to another
            model, or a parameter is not finite, or would not be in its dtype, or a bias or a whole
            unit of it would be below the dtype's normal numbers. The model is unchanged.
        TypeError: the optimizer's state is of an unknown kind; the model is unchanged.
        RuntimeError: an :class:`ENorm` preconditions the biases; the model is unchanged.
        UnsupportedModel: the model cannot be traced.
    """
    if solver not in SOLVERS:
        raise ValueError(f"solver must be one of {', '.join(SOLVERS)}, got {solver!r}")
    if solver == "newton" and power_of_two:
        raise ValueError("Newton's steps are no powers of two: use another solver with them")
    if solver == "jacobi" and power_of_two:
        raise ValueError(
            "rounded jacobi updates of neighbours can raise the energy: use another solver with "
            "powers of two"
        )
    _check_tolerance(tol)
    check_count("max_cycles", max_cycles)
    followers = Followers(optimizer, copies, gradients=True)
    plan = (trace(model) if plan is None else check_plan(plan)).under(batchnorm)
    check_exponents(plan, p, c)
    if solver == "newton" and p == math.inf:
        raise ValueError("Newton's steps need a smooth norm: use another solver with p = infinity")
    tensors = tensors_of(model, plan)
    plan.require_groups()
    followers.check([tensors[name] for name in plan.parameter_names()])
    check_sharding(plan, tensors)
    if solver == "newton" and any(is_sharded(one) for one in tensors.values()):
        raise ValueError("Newton's steps need whole weights: use another solver for sharded ones")
    check_unconditioned(tensors[name] for name in plan.parameter_names())
    _check_finite(plan, tensors)

    energy_before = _energy(plan, tensors, p, c)
    problem = build_problem(plan, p, c)
    with torch.no_grad():
        scales, cycles, remaining = minimise(
            problem,
            tensors,
            solver=solver,
            tol=tol,
            max_cycles=max_cycles,
            power_of_two=power_of_two,
            callback=callback,
        )
    targets = targets_of(plan)
    jobs = [*parameters(targets, tensors), *following(targets, tensors, followers)]
    backup = [(job.tensor, job.tensor.detach().clone()) for job in jobs]
    try:
        write_(jobs, scales.scales())
        energy_after = _energy(plan, tensors, p, c)
        _check_range(plan, tensors, backup)
    except BaseException:
        _restore_(backup)
        raise
    return BalanceResult(cycles, remaining <= tol, energy_before, energy_after, remaining, backup)


def energy(
    model_or_plan: nn.Module | Plan,
    p: float = 2.0,
    c: Factor = 1.0,
    batchnorm: BatchNormRule = "affine",
) -> float:
    """``E = Σ_k c^(p (q − k)) ‖W_k‖_p^p`` over all weighted layers, summed in float64.

    For p = ∞ it is ``max_k c^(q − k) ‖W_k‖_∞``. Weights of LayerNorm, GroupNorm and InstanceNorm
    count as layers.
    Under ``batchnorm="affine"`` the weight ``γ`` of a BatchNorm behind layer k counts as
    ``c^(p (q − k)) ‖γ‖_p^p`` too; under ``"ignore"`` it does not. Biases never count.

    Raises:
        ValueError: p, c or batchnorm is out of its range.
        ReferenceError: a plan whose model is gone.
    """
    plan, tensors = _resolve(model_or_plan, batchnorm)
    check_exponents(plan, p, c)
    return _energy(plan, tensors, p, c)


def residual(
    model_or_plan: nn.Module | Plan,
    p: float = 2.0,
    c: Factor = 1.0,
    batchnorm: BatchNormRule = "affine",
) -> float:
    """The largest ``|log d|`` that one cycle would apply now; zero exactly at the minimum.

    Raises:
        ValueError: p, c or batchnorm is out of its range, or there is nothing to rescale.
        ReferenceError: a plan whose model is gone.
    """
    plan, tensors = _resolve(model_or_plan, batchnorm)
    check_exponents(plan, p, c)
    plan.require_groups()
    with torch.no_grad():
        problem = build_problem(plan, p, c)
        _, _, remaining = minimise(problem, tensors, solver="cyclic", tol=0.0, max_cycles=0)
    return remaining


def check_exponents(plan: Plan, p: Any, c: Any) -> None:
    """Raise ValueError unless p and c are positive, c is finite, and names layers if it has any."""
    if not (isinstance(p, Real) and _float(p) > 0):
        raise ValueError(f"p must be a number above 0, or infinity, got {p!r}")
    if not isinstance(c, Mapping):
        _check_factor("c", c)
        return
    known = {layer.module for layer in plan.layers}
    for name, value in c.items():
        if name not in known:
            raise ValueError(f"c names {name!r}, which is no layer of the plan")
        _check_factor(f"c of {name!r}", value)


def _check_factor(name: str, value: Any) -> None:
    if not (isinstance(value, Real) and 0 < _float(value) < math.inf):
        raise ValueError(f"{name} must be a finite number above 0, got {value!r}")


def _check_tolerance(value: Any) -> None:
    if not (isinstance(value, Real) and _float(value) >= 0):
        raise ValueError(f"tol must be a number of at least 0, got {value!r}")


def _float(value: Any) -> float:
    """As a float, NaN if none is as large."""
    try:
        return float(value)
    except OverflowError:
        return math.nan


def check_count(name: str, value: Any) -> None:
    """Raise ValueError unless ``value`` is a whole number of at least 1."""
    if not (isinstance(value, Integral) and int(value) >= 1):
        raise ValueError(f"{name} must be a whole number of at least 1, got {value!r}")


def _resolve(
    model_or_plan: nn.Module | Plan, batchnorm: BatchNormRule
) -> tuple[Plan, Mapping[str, Tensor]]:
    plan = model_or_plan if isinstance(model_or_plan, Plan) else trace(model_or_plan)
    plan = plan.under(batchnorm)
    return plan, tensors_of(plan.model, plan)


def _energy(plan: Plan, tensors: Mapping[str, Tensor], p: float, c: Factor) -> float:
    total, p = 0.0, float(p)
    for layer in plan.layers:
        weight = tensors[layer.weight].detach()
        entries = local(weight).double()
        rows = rows_of(weight)
        spread = rows is not None and rows.group is not None
        # A logarithm can hold what c_k^p and the sum cannot each hold alone.
        coefficient = log2_coefficient(plan, layer, p, c)
        if p == math.inf:
            powers = entries.abs().amax() if entries.numel() else entries.new_zeros(())
            powers = rows.largest(powers) if rows is not None and spread else powers
            total = max(total, (powers.log2() + coefficient).exp2_().item())
        else:
            powers = (entries.square() if p == 2 else entries.abs().pow(p)).sum()
            powers = rows.added(powers) if rows is not None and spread else powers
            total += (powers.log2() + coefficient).exp2_().item()
    return total


def _check_finite(plan: Plan, tensors: Mapping[str, Tensor]) -> None:
    for name in plan.parameter_names():
        if not all_finite(tensors[name]):
            raise ValueError(f"parameter {name!r} has non-finite entries: nothing was rescaled")


def _check_range(
    plan: Plan, tensors: Mapping[str, Tensor], backup: Sequence[tuple[Tensor, Tensor]]
) -> None:
    """Raise ValueError where a rescaled parameter is no longer what its dtype can hold."""
    before = {id(tensor): kept for tensor, kept in backup}
    for name in plan.parameter_names():
        tensor = tensors[name]
        kind = str(tensor.dtype).removeprefix("torch.")
        advice = "nothing was rescaled; use a wider dtype, a c nearer to 1 or a larger p"
        if not all_finite(tensor):
            raise ValueError(f"parameter {name!r} would leave the range of {kind}: {advice}")
        # Single weights may vanish beside others; a bias, or all weights of a unit, may not.
        new = local(tensor.detach()).abs()
        for axis in range(min(new.dim(), 2)):
            gone = _subnormal(new, axis)
            if bool(gone.any()) and bool(
                (gone & ~_subnormal(local(before[id(tensor)]).abs(), axis)).any()
            ):
                raise ValueError(f"a unit of parameter {name!r} would vanish in {kind}: {advice}")


def _subnormal(magnitudes: Tensor, axis: int) -> Tensor:
    """Along that axis: whether all entries are below the normal numbers of their dtype."""
    others = [other for other in range(magnitudes.dim()) if other != axis]
    largest = magnitudes.amax(others) if others else magnitudes
    return largest < torch.finfo(magnitudes.dtype).smallest_normal


def _restore_(backup: list[tuple[Tensor, Tensor]]) -> None:
    with torch.no_grad():
        for tensor, kept in backup:
            tensor.copy_(kept)
