"""What every benchmark needs: networks, devices, and times that can be divided by each other."""

from __future__ import annotations

import itertools
import statistics
import time
from collections.abc import Callable, Mapping
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import nn

import enorm

DEPTHS = [1, 9, 19]
DEVICES = ["cpu", "cuda"]
METHODS = ["none", "bn", "enorm", "enorm+bn"]
BATCH = 256


def build(depth: int, device: str, *, batchnorm: bool = False) -> nn.Sequential:
    """The report's network: 3072–500, depth × 500–500, 500–10, no biases, He-uniform weights."""
    generator = torch.Generator().manual_seed(depth)
    sizes = [3072, *[500] * (depth + 1), 10]
    modules: list[nn.Module] = []
    for layer, (fan_in, fan_out) in enumerate(itertools.pairwise(sizes)):
        linear = nn.Linear(fan_in, fan_out, bias=False)
        nn.init.kaiming_uniform_(linear.weight, nonlinearity="relu", generator=generator)
        modules.append(linear)
        if layer <= depth:
            modules += [nn.BatchNorm1d(fan_out), nn.ReLU()] if batchnorm else [nn.ReLU()]
    return nn.Sequential(*modules).to(device)


def training_step(depth: int, device: str, method: str) -> Callable[[], None]:
    """A step of SGD on one batch, with BatchNorm and an ENorm cycle as ``method`` says."""
    model = build(depth, device, batchnorm="bn" in method)
    # So small a rate that weights stay where they are, however often the step is repeated.
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-6, weight_decay=1e-3)
    stepper = None
    if "enorm" in method:
        stepper = enorm.ENorm(model, optimizer, c=1.2, batchnorm="ignore")
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(BATCH, 3072, generator=generator).to(device)
    labels = torch.randint(10, (BATCH,), generator=generator).to(device)

    def step() -> None:
        optimizer.zero_grad()
        F.cross_entropy(model(images), labels).backward()
        optimizer.step()
        if stepper is not None:
            stepper.step()

    return step


def memory_pass(model: nn.Module) -> Callable[[], None]:
    """One pass that reads all weights and one that reads and writes them: no cycle can do less."""
    weights = [parameter.detach() for parameter in model.parameters() if parameter.dim() > 1]

    def touch() -> None:
        for weight in weights:
            weight.sum()
        for weight in weights:
            weight.mul_(1.0)

    return touch


def synchronise(device: str) -> None:
    """Wait for the device."""
    if device == "cuda":
        torch.cuda.synchronize()


def interleaved(
    calls: Mapping[str, Callable[[], None]], device: str, rounds: int = 30, warm_up: int = 5
) -> dict[str, float]:
    """Median seconds of each call, all measured in turn so that a slow moment meets them all."""
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for number in range(warm_up + rounds):
        for name, call in calls.items():
            synchronise(device)
            start = time.perf_counter()
            call()
            synchronise(device)
            if number >= warm_up:
                seconds[name].append(time.perf_counter() - start)
    return {name: statistics.median(values) for name, values in seconds.items()}


class OnDevice:
    """Base of all benchmarks: parameters depth and device; skips a device that is not there."""

    params: ClassVar[list[list[object]]] = [list(DEPTHS), list(DEVICES)]
    param_names: ClassVar[list[str]] = ["depth", "device"]
    timeout = 300

    def setup(self, depth: int, device: str, *_: object) -> None:
        # asv takes this exception from setup as "skip".
        if device == "cuda" and not torch.cuda.is_available():
            raise NotImplementedError("no CUDA device")
        self.device = device
        self.prepare(depth, device, *_)

    def prepare(self, depth: int, device: str, *_: object) -> None:
        """Build what is measured and run it once; a benchmark without state needs none."""

    def run(self, call: Callable[[], None]) -> None:
        """Call and wait for the device."""
        call()
        synchronise(self.device)
