"""A step on a GPU waits for nothing, and may be captured in a CUDA graph."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torchvision.models import resnet18

import enorm
from enorm.tests.capture import Watched

# Fake tensors have addresses that mean nothing; optimizers look at them.
pytestmark = pytest.mark.filterwarnings("ignore:Accessing the data pointer of FakeTensor")


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
    with FakeTensorMode():
        with torch.device("cuda"):
            model = network()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        for parameter in model.parameters():
            parameter.grad = torch.zeros_like(parameter)
        stepper = enorm.ENorm(model, optimizer, **settings)
        optimizer.step()
        for _ in range(before):
            stepper.step()
        with Watched() as watched:
            stepper.step()
        assert watched.host == []
        assert len(watched.used) > len(stepper.plan.groups)
        assert watched.freed() == []


@pytest.mark.parametrize("cycles", [1, 2])
@pytest.mark.parametrize("compile", [False, True])
def test_a_graph_replays_a_step(compile: bool, cycles: int) -> None:
    """With the weights as they are when it is replayed."""
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device: CUDA graphs are not exercised")
    model = chain([4, 50, 7, 90, 90, 3, 200, 200, 2]).to("cuda")
    twin = copy.deepcopy(model)
    stepper = enorm.ENorm(model, cycles=cycles, compile=compile)
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        for _ in range(3):
            stepper.step()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream):
        stepper.step()
    with torch.no_grad():
        for one, other in zip(model.parameters(), twin.parameters(), strict=True):
            one.copy_(other)
    graph.replay()
    enorm.ENorm(twin, cycles=cycles, compile=compile).step()
    for one, other in zip(model.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=0)
