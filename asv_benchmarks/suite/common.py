"""What every benchmark needs: devices, calls, and times that can be divided by each other."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import nn

import enorm

from .networks import Norm, build, images

DEVICES = ["cpu", "cuda"]
METHODS = ["none", "bn", "groupnorm", "enorm", "enorm+bn"]
BATCH = 256

Call = Callable[[], None]


def cycle(net: str, device: str, **settings: bool) -> Call:
    """One cycle of Algorithm 1, c = 1.2, as a training loop calls it."""
    stepper = enorm.ENorm(build(net, device), c=1.2, **settings)  # type: ignore[arg-type]
    return stepper.step


def balance(net: str, device: str) -> Call:
    """Twenty over-relaxed cycles, scales written once at the end."""
    model = build(net, device)

    def call() -> None:
        enorm.balance_(model, tol=0.0, max_cycles=20)

    return call


def training_step(net: str, device: str, method: str, batch: int = BATCH) -> Call:
    """A step of SGD on one batch, with the normalization and the ENorm cycle of ``method``."""
    norms: dict[str, Norm] = {"bn": "bn", "enorm+bn": "bn", "groupnorm": "groupnorm"}
    model = build(net, device, norms.get(method, "none"))
    # So small a rate that weights stay where they are, however often the step is repeated.
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-6, weight_decay=1e-3)
    stepper = None
    if "enorm" in method:
        stepper = enorm.ENorm(model, optimizer, c=1.2, batchnorm="ignore")
    inputs = images(net, batch, device)
    labels = (torch.arange(batch) % 10).to(device)

    def step() -> None:
        optimizer.zero_grad()
        F.cross_entropy(model(inputs), labels).backward()
        optimizer.step()
        if stepper is not None:
            stepper.step()

    return step


def memory_pass(model: nn.Module) -> Call:
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
    calls: Mapping[str, Call], device: str, rounds: int = 30, warm_up: int = 5
) -> dict[str, float]:
    """Median seconds of each call, all measured in turn so that a slow moment meets them all."""
    seconds = in_turn(calls, device, rounds, warm_up)
    return {name: statistics.median(values) for name, values in seconds.items()}


def excess(seconds: Mapping[str, Sequence[float]], longer: str, shorter: str) -> float:
    """Median over the rounds of how many seconds one call takes more than another.

    Of two large times that drift, the difference within a round is known far better than that of
    their medians.
    """
    pairs = zip(seconds[longer], seconds[shorter], strict=True)
    return statistics.median(more - less for more, less in pairs)


def in_turn(
    calls: Mapping[str, Call], device: str, rounds: int, warm_up: int
) -> dict[str, list[float]]:
    """Seconds of each call, round by round."""
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for number in range(warm_up + rounds):
        for name, call in calls.items():
            synchronise(device)
            start = time.perf_counter()
            call()
            synchronise(device)
            if number >= warm_up:
                seconds[name].append(time.perf_counter() - start)
    return seconds


class OnDevice:
    """Base of all benchmarks: parameters net and device; skips a device that is not there."""

    params: ClassVar[list[list[object]]] = [["fc-1", "fc-9", "fc-19"], list(DEVICES)]
    param_names: ClassVar[list[str]] = ["net", "device"]
    timeout = 300

    def setup(self, net: str, device: str, *_: object) -> None:
        # asv takes this exception from setup as "skip".
        if device == "cuda" and not torch.cuda.is_available():
            raise NotImplementedError("no CUDA device")
        self.device = device
        self.prepare(net, device, *_)

    def prepare(self, net: str, device: str, *_: object) -> None:
        """Build what is measured and run it once; a benchmark without state needs none."""

    def run(self, call: Call) -> None:
        """Call and wait for the device."""
        call()
        synchronise(self.device)
