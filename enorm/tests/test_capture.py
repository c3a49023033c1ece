"""What a CUDA graph asks of a step, on a device that computes nothing.

Tensors of ``FakeTensorMode`` say that they are on a GPU; reading one on the host raises, as a graph
that is being captured would.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torchvision.models import resnet18

import enorm

# Fake tensors have addresses that mean nothing; optimizers look at them.
pytestmark = pytest.mark.filterwarnings("ignore:Accessing the data pointer of FakeTensor")


class Step(TorchDispatchMode):
    """What operations use that was there before, and whether any of it is on the host.

    Attributes:
        used: memory from before, by identity.
        host: operations on tensors of the host.
    """

    def __init__(self) -> None:
        super().__init__()
        self.used: dict[int, StorageWeakRef] = {}
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
                self.used.setdefault(memory.cdata, memory)
        for one in _tensors(found):
            if (identity := one.untyped_storage()._cdata) not in self.used:
                self._made.add(identity)
        if any(one.device.type == "cpu" for one in _tensors((args, kwargs, found))):
            self.host.append(str(func))
        return found


def _tensors(of: Any) -> list[Tensor]:
    return [one for one in tree_leaves(of) if isinstance(one, Tensor)]


def chain(widths: Sequence[int]) -> nn.Sequential:
    """Linear layers with ReLU between them."""
    layers = [(nn.Linear(*pair), nn.ReLU()) for pair in itertools.pairwise(widths)]
    return nn.Sequential(*itertools.chain(*layers))[:-1]


CASES: list[tuple[Callable[[], nn.Module], dict[str, Any], int]] = [
    *(
        (lambda: chain([4, 50, 7, 90, 90, 3, 200, 200, 2]), settings, before)
        for settings in (
            {},
            {"cycles": 2, "c": 1.2},
            {"order": "jacobi"},
            {"p": 1.5},
            {"p": 3.0, "cycles": 2},
            {"p": float("inf")},
        )
        for before in (1, 3)
    ),
    (lambda: chain([20, 40, 5, 20, 13, 13, 70, 20]), {}, 1),
    (resnet18, {}, 1),
    (resnet18, {"cycles": 2}, 2),
]


@pytest.mark.parametrize(("network", "settings", "before"), CASES)
def test_a_step_can_be_captured(
    network: Callable[[], nn.Module], settings: Mapping[str, Any], before: int
) -> None:
    """It never waits for the device, and leaves alive what a graph of it would use."""
    with FakeTensorMode(), torch.device("cuda"):
        model = network()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        for parameter in model.parameters():
            parameter.grad = torch.zeros_like(parameter)
        stepper = enorm.ENorm(model, optimizer, **settings)
        optimizer.step()
        for _ in range(before):
            stepper.step()
        with Step() as step:
            stepper.step()
        assert step.host == []
        assert len(step.used) > len(stepper.plan.groups)
        assert [one for one in step.used.values() if one.expired()] == []
