"""What a CUDA graph asks of the operations that it captures, without a GPU.

Tensors of ``FakeTensorMode`` say that they are on one; to read one on the host raises, as it would
in a capture.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class Watched(TorchDispatchMode):
    """What operations use that was there before, and whether any of them is on the host.

    Attributes:
        used: memory from before, and who used it first, by identity.
        host: operations on tensors of the host.
    """

    def __init__(self) -> None:
        super().__init__()
        self.used: dict[int, tuple[StorageWeakRef, str]] = {}
        self.host: list[str] = []
        self._made: set[int] = set()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Run it."""
        found = func(*args, **(kwargs or {}))
        for one in _tensors((args, kwargs)):
            memory = StorageWeakRef(one.untyped_storage())
            if memory.cdata not in self._made:
                self.used.setdefault(memory.cdata, (memory, str(func)))
        for one in _tensors(found):
            if (identity := one.untyped_storage()._cdata) not in self.used:
                self._made.add(identity)
        if any(one.device.type == "cpu" for one in _tensors((args, kwargs, found))):
            self.host.append(str(func))
        return found

    def freed(self) -> list[str]:
        """Who used memory that nobody holds any more, which a graph would write into."""
        return [func for memory, func in self.used.values() if memory.expired()]


def _tensors(of: Any) -> list[Tensor]:
    return [one for one in tree_leaves(of) if isinstance(one, Tensor)]
