"""Which tensors lie in the same memory."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from enorm._sharded import local

_COMPRESSED = (torch.sparse_csr, torch.sparse_csc, torch.sparse_bsr, torch.sparse_bsc)


def strided(tensor: Tensor) -> Tensor | None:
    """What of it lies in memory by strides: of a sparse tensor its values; None for nothing."""
    if tensor.layout is torch.strided:
        return tensor
    if tensor.layout is torch.sparse_coo:
        return tensor._values()
    return tensor.values() if tensor.layout in _COMPRESSED else None


def storage(tensor: Tensor) -> int:
    """What two tensors have in common that share memory."""
    part = strided(tensor)
    return id(tensor) if part is None else int(part.untyped_storage()._cdata)


def is_lazy(tensor: Tensor) -> bool:
    """Whether it has no shape before the first forward."""
    return isinstance(tensor, (nn.UninitializedParameter, nn.UninitializedBuffer))


def overlaps_itself(tensor: Tensor) -> bool:
    """Whether two of its entries may be one in memory; True in doubt."""
    reach = 0
    for stride, size in sorted(zip(tensor.stride(), tensor.shape, strict=True)):
        # Each axis steps over all that the ones inside it reach, or may meet it again.
        if size > 1 and stride <= reach:
            return True
        reach += int(size - 1) * int(stride)
    return False


def sharing(model: nn.Module) -> Iterator[str]:
    """Names of parameters any entry of which has a second name, in whatever tensor."""
    spans: dict[int, list[tuple[int, int, str]]] = {}
    tensors: list[tuple[str, Tensor]] = [*model.named_parameters(remove_duplicate=False)]
    tensors += list(model.named_buffers(remove_duplicate=False))
    for name, tensor in tensors:
        if is_lazy(tensor):
            continue
        part = strided(local(tensor))
        if part is None or part.numel() == 0:
            continue
        tensor = part
        if overlaps_itself(tensor):
            yield name
        first = int(tensor.storage_offset())
        extents = zip(tensor.shape, tensor.stride(), strict=True)
        last = first + sum(int(size - 1) * int(stride) for size, stride in extents)
        spans.setdefault(storage(tensor), []).append((first, last, name))
    for parts in spans.values():
        reach, owner = -1, ""
        for first, last, name in sorted(parts):
            if first <= reach:
                yield name
                yield owner
            if last > reach:
                reach, owner = last, name
