"""Parameters whose rows are spread over processes (``DTensor``, as ``fully_shard`` makes them).

Scale vectors are whole on every process. Of a weight each process sees its own rows: row norms are
local and gathered, column sums are added up, so that a group costs one all-gather and one
all-reduce of a vector of its units; no weight is ever gathered.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

if TYPE_CHECKING:
    from enorm._plan import Plan


def _loaded(module: str, name: str) -> Any:
    """A class of torch's that nothing can be an instance of before its module is imported.

    Importing these takes half as long as importing torch, and few users need them.
    """
    return getattr(sys.modules.get(f"torch.distributed.{module}"), name, ())


@dataclass(frozen=True)
class Rows:
    """The rows of a weight that this process holds.

    Attributes:
        group: the processes that share it.
        sizes: rows of each of them, by rank.
        rank: this one's.
    """

    group: Any
    sizes: tuple[int, ...]
    rank: int

    @property
    def start(self) -> int:
        """The first of them."""
        return sum(self.sizes[: self.rank])

    def own(self, vector: Tensor) -> Tensor:
        """Entries of a whole vector that belong to these rows."""
        return vector.narrow(0, self.start, self.sizes[self.rank])

    def gathered(self, part: Tensor) -> Tensor:
        """The whole vector, from every process's part."""
        widest = max(self.sizes)
        padded = part.new_zeros(widest)
        padded[: len(part)] = part
        parts = [torch.empty_like(padded) for _ in self.sizes]
        dist.all_gather(parts, padded, group=self.group)
        return torch.cat([one[:size] for one, size in zip(parts, self.sizes, strict=True)])

    def added(self, part: Tensor) -> Tensor:
        """The sum of all processes' tensors."""
        total = part.clone()
        dist.all_reduce(total, group=self.group)
        return total

    def largest(self, part: Tensor) -> Tensor:
        """The elementwise maximum of all processes' tensors."""
        top = part.clone()
        dist.all_reduce(top, op=dist.ReduceOp.MAX, group=self.group)
        return top


def is_sharded(tensor: Tensor) -> bool:
    """Whether processes hold parts of it."""
    return isinstance(tensor, _loaded("tensor", "DTensor"))


def local(tensor: Tensor) -> Tensor:
    """The rows that this process holds: all of them, unless it is sharded."""
    if not is_sharded(tensor):
        return tensor
    part: Tensor = tensor.to_local()  # type: ignore[attr-defined]
    return part


def rows_of(tensor: Tensor) -> Rows | None:
    """How its rows are spread; None for a tensor that is whole.

    Raises:
        ValueError: it is spread in another way.
    """
    if not is_sharded(tensor):
        return None
    from torch.distributed.tensor import DTensor, Replicate, Shard

    assert isinstance(tensor, DTensor)
    axes = [axis for axis, place in enumerate(tensor.placements) if place != Replicate()]
    if not axes:
        return Rows(None, (tensor.shape[0],), 0)
    if len(axes) > 1 or tensor.placements[axes[0]] != Shard(0):
        raise ValueError(
            f"a parameter is placed {tensor.placements}: only rows over one mesh axis, as "
            "fully_shard places them, can be rescaled"
        )
    group = tensor.device_mesh.get_group(axes[0])
    count = dist.get_world_size(group)
    chunk = -(-tensor.shape[0] // count)
    sizes = tuple(max(0, min(chunk, tensor.shape[0] - rank * chunk)) for rank in range(count))
    rows = Rows(group, sizes, dist.get_rank(group))
    assert len(tensor.to_local()) == sizes[rows.rank]
    return rows


def all_finite(tensor: Tensor) -> bool:
    """Whether every entry is, on every process."""
    part = local(tensor).detach()
    bad = torch.zeros((), dtype=torch.int32, device=part.device)
    if part.numel():
        # NaN goes through both ends; asking entry by entry takes twenty times as long.
        low, high = torch.aminmax(part)
        bad = (~(low.isfinite() & high.isfinite())).to(torch.int32)
    rows = rows_of(tensor)
    return not bool(bad if rows is None or rows.group is None else rows.largest(bad))


def check_sharding(plan: Plan, tensors: Mapping[str, Tensor]) -> None:
    """Raise ValueError where a sharded weight lies otherwise than row by row."""
    for layer in plan.layers:
        if is_sharded(tensors[layer.weight]):
            rows_of(tensors[layer.weight])
            if layer.groups > 1 or layer.transposed:
                raise ValueError(
                    f"{layer.module!r} is a grouped or transposed convolution with sharded rows, "
                    "which cannot be rescaled: leave it out of fully_shard, or exclude it in "
                    "enorm.trace"
                )


def why_not(model: nn.Module) -> str | None:
    """Why a model that is spread over processes cannot be traced; None if it can."""
    for module in model.modules():
        if isinstance(module, _loaded("fsdp", "FullyShardedDataParallel")):
            return (
                "FullyShardedDataParallel (FSDP1) keeps flat parameters: use fully_shard (FSDP2), "
                "which keeps each weight"
            )
        if isinstance(module, _loaded("fsdp", "FSDPModule")):
            return (
                "it has been through fully_shard: trace the model before, and pass the plan to "
                "enorm.ENorm(model, optimizer, plan=plan)"
            )
    if any(hasattr(parameter, "ds_id") for parameter in model.parameters()):
        return "its parameters are partitioned by DeepSpeed ZeRO-3, which leaves no weights to read"
    return None


def class_of(module: nn.Module) -> type[nn.Module]:
    """Its class before ``fully_shard``."""
    kind = type(module)
    if isinstance(module, _loaded("fsdp", "FSDPModule")):
        return kind.__bases__[1]
    return kind


def own_hooks(module: nn.Module) -> bool:
    """Whether it has forward hooks other than those of ``fully_shard``."""
    hooks = [*module._forward_hooks.values(), *module._forward_pre_hooks.values()]
    return any("torch.distributed.fsdp" not in str(getattr(h, "__module__", "")) for h in hooks)
