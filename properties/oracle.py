"""What the suite holds an implementation against: Algorithm 1 in plain loops, and its energy.

Where the implementation declares to leave out the last pair, so does the oracle: the last weight
then takes no part.
"""

from __future__ import annotations

import copy
import itertools
import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

import enorm
from enorm.reference import ChainLayer
from properties.implementation import Order, Rule, current
from properties.specs import Net, weighted


def chain(model: nn.Sequential, batchnorm: Rule = "affine") -> list[ChainLayer]:
    """Copies of the model's layers for the reference; under ``ignore`` without BatchNorm."""
    affine = batchnorm == "affine"
    return [
        ChainLayer(
            weight=_copied(layer.weight),
            bias=None if layer.bias is None else _copied(layer.bias),
            gamma=_copied(norm.weight) if affine and norm is not None else None,
            beta=_copied(norm.bias) if affine and norm is not None else None,
        )
        for layer, norm in weighted(model)
    ]


def _copied(parameter: Tensor) -> Tensor:
    """In float64, and nowhere that a cycle in place can reach."""
    return parameter.detach().to(torch.float64, copy=True)


def balanced_part(layers: list[ChainLayer]) -> list[ChainLayer]:
    """All layers, or all but the last where the implementation leaves out the last pair."""
    return layers if current().capabilities.last_pair else layers[:-1]


def cycle(layers: list[ChainLayer], p: float, c: float, order: Order) -> list[ChainLayer]:
    """One cycle of Algorithm 1."""
    part = balanced_part(layers)
    after, _ = enorm.reference.cycle(part, p=p, c=c, order=order)
    return [*after, *layers[len(part) :]]


def energy(model: nn.Sequential, p: float, c: float, batchnorm: Rule = "affine") -> float:
    """``Σ_k c^(p (q − k)) ‖W_k‖_p^p`` over the layers that are balanced, in plain loops."""
    return enorm.reference.energy(balanced_part(chain(model, batchnorm)), p=p, c=c)


def residual(model: nn.Sequential, p: float, c: float, batchnorm: Rule = "affine") -> float:
    """The largest ``|log d|`` that one more cycle would apply."""
    part = balanced_part(chain(model, batchnorm))
    _, scales = enorm.reference.cycle(part, p=p, c=c, order="jacobi")
    return max(
        (abs(torch.tensor(d, dtype=torch.float64).log().item()) for row in scales for d in row),
        default=0.0,
    )


def log_scales(before: nn.Sequential, after: nn.Sequential) -> NDArray[np.float64]:
    """``log d`` of every hidden unit, read off the largest entry of its producer.

    An entry ``W[i, j]`` has been multiplied by ``d_k[i]`` and divided by the scale of the unit in
    front of column j.
    """
    found: list[list[float]] = []
    groups = len(balanced_part(chain(before))) - 1
    pairs = zip(weighted(before)[:groups], weighted(after)[:groups], strict=True)
    for (old, old_norm), (new, new_norm) in pairs:
        in_front = [0.0] if old_norm is not None or not found else found[-1]
        rows = (old if old_norm is None else old_norm).weight.detach()
        moved = (new if new_norm is None else new_norm).weight.detach()
        found.append([])
        for row, scaled in zip(rows, moved, strict=True):
            top = int(row.abs().flatten().argmax())
            ratio = float(scaled.flatten()[top] / row.flatten()[top])
            # Columns of one unit stand side by side, kernel positions included.
            unit = top * len(in_front) // row.numel()
            found[-1].append(math.log(ratio) + in_front[unit])
    return np.array([z for layer in found for z in layer])


def log_range(*models: nn.Sequential) -> float:
    """The largest ``|ln w|`` of an entry of a weight, a BatchNorm's included, that is not zero."""
    weights = [
        one.abs().double().flatten()
        for model in models
        for layer in chain(model)
        for one in (layer.weight, layer.gamma)
        if one is not None
    ]
    entries = torch.cat(weights)
    return float(entries[entries > 0].log().abs().max())


def units(model: nn.Sequential) -> int:
    """How many hidden units have a scale."""
    return sum(len(layer.weight) for layer in balanced_part(chain(model))[:-1])


def rescale_(model: nn.Sequential, z: NDArray[np.float64]) -> None:
    """Multiply hidden unit by hidden unit by ``exp(z)``, and undo it behind."""
    layers = weighted(model)[: len(balanced_part(chain(model)))]
    left = torch.from_numpy(z).exp()
    with torch.no_grad():
        for (producer, norm), (consumer, _) in itertools.pairwise(layers):
            d, left = left[: len(producer.weight)], left[len(producer.weight) :]
            made = producer if norm is None else norm
            made.weight.mul_(d.view(-1, *[1] * (made.weight.dim() - 1)))
            if made.bias is not None:
                made.bias.mul_(d)
            columns = d.repeat_interleave(consumer.weight.shape[1] // len(d))
            consumer.weight.div_(columns.view(-1, *[1] * (consumer.weight.dim() - 2)))


def settle(
    net: Net, model: nn.Sequential, p: float, c: float, order: Order, tol: float = 1e-11
) -> None:
    """Cycles of the implementation until one more would move no scale by more than ``tol``."""
    step = current().stepper(model, None, p=p, c=c, order=order, batchnorm="affine")
    for _ in range(400):
        now = residual(model, p, c)
        if now <= tol:
            return
        for _ in range(10):
            step()
    raise AssertionError(failure(net, "residual after 4000 cycles", now, tol))


def fan_in(model: nn.Module) -> int:
    """Sum over all groups of the number of terms in their norms, at most all weights twice."""
    return sum(2 * parameter[0].numel() for parameter in model.parameters() if parameter.dim() > 1)


def has_function(net: Net, *models: nn.Module) -> bool:
    """Whether models of ``net`` compute something that could be kept, in their own dtype.

    Not where a layer's output, taken in float64, comes near the dtype's largest number, as may
    happen in half precision. Nor where torch does not compute what it says: a bfloat16 ``Conv3d``
    of one position, with padding and a stride, returns memory that nobody has written, another time
    other memory (torch 2.14 on x86-64).
    """
    if net.dtype == "bfloat16" and net.axes == 3:
        return False
    found = [0.0]
    for model in models:
        wide = copy.deepcopy(model).double()
        for module in wide.modules():
            module.register_forward_hook(lambda _m, _i, out: found.append(out.abs().max().item()))
        with torch.no_grad():
            wide(net.draw_inputs().double())
    return max(found) < torch.finfo(net.torch_dtype).max / 4


def assert_same(
    net: Net, what: str, found: list[ChainLayer], expected: list[ChainLayer], rtol: float
) -> None:
    """Fail unless all weights agree within ``rtol``, and what underflows within one normal.

    What is not finite has to be the same.
    """
    tiny = torch.finfo(net.torch_dtype).smallest_normal
    for k, (one, other) in enumerate(zip(found, expected, strict=True), start=1):
        for name in ("weight", "bias", "gamma", "beta"):
            mine: Tensor | None = getattr(one, name)
            theirs: Tensor | None = getattr(other, name)
            assert (mine is None) == (theirs is None), f"layer {k} has one {name} only"
            if mine is None or theirs is None:
                continue
            error = (mine - theirs).abs() / (theirs.abs() + tiny / rtol)
            error[(mine == theirs) | (mine.isnan() & theirs.isnan())] = 0.0
            worst = error.nan_to_num(torch.inf).max().item()
            text = f"{what}: relative error, layer {k} {name}"
            assert worst <= rtol, failure(net, text, worst, rtol)


def failure(net: Net, what: str, measured: float, bound: float) -> str:
    """All that is needed to see a failure again; pytest adds the command that replays it."""
    return broken(net, f"{what}: {measured:.6g}, bound {bound:.6g}")


def broken(net: Net, what: str) -> str:
    """The same of a promise that has no bound."""
    return (
        f"{what}\n"
        f"implementation: {current().name} {current().version}\n"
        f"dtype: {net.dtype}, device: cpu, seed: {net.seed}\n"
        f"network: {net!r}"
    )
