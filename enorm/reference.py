"""Algorithm 1 of Stock et al. 2019 in plain float64 loops: the oracle, slow and obvious.

A network is a chain: weights ``W_1 … W_q`` of shape ``(out, in, *kernel)``, each layer's bias or
None, and, where a BatchNorm with affine parameters follows a layer, its weight and bias. Column
block ``i`` of ``W_{k+1}`` belongs to unit ``i`` of layer k; a block is longer than one where a
flatten stands between a convolution and a Linear.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor


@dataclass(frozen=True)
class ChainLayer:
    """One weighted layer of a chain, all tensors float64.

    Attributes:
        weight: ``(out, in, *kernel)``.
        bias: ``(out,)`` or None.
        gamma: weight ``(out,)`` of a BatchNorm that follows, or None.
        beta: bias ``(out,)`` of that BatchNorm, or None.
    """

    weight: Tensor
    bias: Tensor | None = None
    gamma: Tensor | None = None
    beta: Tensor | None = None


def cycle(
    layers: Sequence[ChainLayer],
    *,
    p: float = 2.0,
    c: float = 1.0,
    order: Literal["cyclic", "jacobi"] = "cyclic",
) -> tuple[list[ChainLayer], list[list[float]]]:
    """One cycle; the input is not changed.

    For ``k = 1 … q − 1`` and every unit i: ``L = ‖W_k[i, :]‖_p`` (or ``|γ_k[i]|`` where a BatchNorm
    follows), ``R = ‖W_{k+1}[:, i]‖_p``, ``d = sqrt(R / (c L))``; the producer and its bias times d,
    the columns divided by d. A unit with L or R zero or not finite keeps d = 1. ``"jacobi"`` takes
    L and R from the weights as they were before the cycle.

    Returns:
        The layers after the cycle and the scales d, one list per hidden layer.
    """
    now = [_copy(layer) for layer in layers]
    scales: list[list[float]] = []
    for k in range(len(now) - 1):
        source = now if order == "cyclic" else layers
        producer, consumer = now[k], now[k + 1]
        units = producer.weight.shape[0]
        block = consumer.weight.shape[1] // units
        scales.append([])
        for i in range(units):
            columns = slice(i * block, (i + 1) * block)
            gamma = source[k].gamma
            left = norm(source[k].weight[i] if gamma is None else gamma[i : i + 1], p)
            right = norm(source[k + 1].weight[:, columns], p)
            is_alive = 0 < left < math.inf and 0 < right < math.inf
            d = math.sqrt(right) / math.sqrt(left) / math.sqrt(c) if is_alive else 1.0
            if producer.gamma is None:
                producer.weight[i] *= d
                if producer.bias is not None:
                    producer.bias[i] *= d
            else:
                producer.gamma[i] *= d
                if producer.beta is not None:
                    producer.beta[i] *= d
            consumer.weight[:, columns] /= d
            scales[-1].append(d)
    return now, scales


def energy(layers: Sequence[ChainLayer], *, p: float = 2.0, c: float = 1.0) -> float:
    """``Σ_k c^(p (q − k)) (‖W_k‖_p^p + ‖γ_k‖_p^p)``, γ where a BatchNorm follows."""
    q = len(layers)
    total = 0.0
    if p == math.inf:
        return max(
            c ** (q - k) * norm(tensor, p)
            for k, layer in enumerate(layers, start=1)
            for tensor in (layer.weight, layer.gamma)
            if tensor is not None
        )
    for k, layer in enumerate(layers, start=1):
        tensors = [layer.weight] if layer.gamma is None else [layer.weight, layer.gamma]
        total += sum((c ** (q - k) * norm(tensor, p)) ** p for tensor in tensors)
    return total


def norm(values: Tensor, p: float) -> float:
    """``(Σ |v|^p)^(1/p)``, the largest entry for p = ∞; NaN where an entry is not finite.

    Scaled by the largest entry, so that nothing overflows or vanishes.
    """
    entries: list[float] = values.double().abs().flatten().tolist()
    if not all(map(math.isfinite, entries)):
        return math.nan
    top = max(entries, default=0.0)
    if top == 0 or p == math.inf:
        return top
    scaled: float = math.fsum((entry / top) ** p for entry in entries) ** (1 / p)
    return top * scaled


def _copy(layer: ChainLayer) -> ChainLayer:
    def clone(tensor: Tensor | None) -> Tensor | None:
        return None if tensor is None else tensor.detach().to(torch.float64, copy=True)

    return replace(
        layer,
        weight=layer.weight.detach().to(torch.float64, copy=True),
        bias=clone(layer.bias),
        gamma=clone(layer.gamma),
        beta=clone(layer.beta),
    )
