"""Weights seen as ``(out, in, *kernel)``, and vectors laid along their axes.

Grouped convolutions are seen as ``(groups, out / groups, in / groups, *kernel)``: what follows
works on both, with units counted through all groups.
"""

from __future__ import annotations

import torch
from torch import Tensor

from enorm._plan import Layer


def canonical(weight: Tensor, layer: Layer) -> Tensor:
    """A view of ``weight``: ``(out, in, *kernel)``, with an axis of groups in front if grouped.

    A weight of one axis, such as BatchNorm's, stays as it is.
    """
    if layer.groups > 1:
        grouped: Tensor = weight.unflatten(0, (layer.groups, -1))
        return grouped.transpose(1, 2) if layer.transposed else grouped
    return weight.transpose(0, 1) if layer.transposed else weight


def flattened(view: Tensor, groups: int) -> tuple[Tensor, int]:
    """A canonical view as matrices, if memory allows, and how many entries each column becomes.

    A kernel's few positions make slow rows of their own: they lie with the columns.
    """
    lead = 2 if groups > 1 else 1
    if view.dim() <= lead + 1 or not view.is_contiguous():
        return view, 1
    matrices = view.flatten(lead)
    return matrices, matrices.shape[-1] // view.shape[lead]


def along_rows(vector: Tensor, view: Tensor, groups: int) -> Tensor:
    """``(out,)`` so that it multiplies the rows of a canonical ``view``."""
    if groups > 1:
        return vector.view(groups, -1, *[1] * (view.dim() - 2))
    return vector.view(-1, *[1] * (view.dim() - 1))


def along_columns(vector: Tensor, view: Tensor, groups: int) -> Tensor:
    """``(in,)`` so that it multiplies the columns of a canonical ``view``."""
    if groups > 1:
        return vector.view(groups, 1, -1, *[1] * (view.dim() - 3))
    return vector.view(1, -1, *[1] * (view.dim() - 2))


def dense(matrix: Tensor, missing: float) -> Tensor:
    """A ``(groups, out, in)`` block per group as one ``(groups·out, groups·in)`` matrix."""
    if matrix.dim() == 2:
        return matrix
    groups, rows, columns = matrix.shape
    whole = matrix.new_full((groups, rows, groups, columns), missing)
    index = torch.arange(groups, device=matrix.device)
    whole[index, :, index, :] = matrix
    return whole.view(groups * rows, groups * columns)
