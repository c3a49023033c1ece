"""Training steps of :mod:`repro`, as multiples of the matrix products in them."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
from torch import Tensor

from asv_benchmarks.suite.common import Call, interleaved
from repro.data import Tensors
from repro.engine import Step
from repro.spec import METHODS, Method, RunSpec
from repro.train import begin

_IMAGES = 20_000


def products(depth: int, batch: int, device: str) -> Call:
    """The products of forward and backward, and nothing else: three per layer, two in the first.

    On a GPU as one graph, as the training step is.
    """
    sizes = [3072, *[500] * (depth + 1), 10]
    # Small, so that what is written over and over neither grows nor leaves the normal numbers.
    weights = [
        torch.randn(fan_out, fan_in, device=device) / fan_in**0.5
        for fan_in, fan_out in itertools.pairwise(sizes)
    ]
    activations = [torch.randn(batch, size, device=device) for size in sizes]
    errors = [torch.randn(batch, size, device=device) for size in sizes]
    gradients = [torch.empty_like(weight) for weight in weights]

    def run(_: Tensor) -> Tensor:
        for k, weight in enumerate(weights):
            torch.mm(activations[k], weight.T, out=activations[k + 1])
        for k in reversed(range(len(weights))):
            torch.mm(errors[k + 1].T, activations[k], out=gradients[k])
            if k:
                torch.mm(errors[k + 1], weights[k], out=errors[k])
        return activations[-1]

    step, images = Step(run, torch.device(device)), torch.arange(batch, device=device)

    def call() -> None:
        step(images)

    return call


def step_of(method: Method, depth: int, data: Tensors) -> Call:
    """One step of the paper preset on a fixed batch, at a rate that leaves the weights alone."""
    spec = RunSpec(method, depth, 0, 1e-6)
    _, step = begin([spec], data)
    batch = torch.arange(spec.batch_size, device=data.train.device) * 7 % len(data.train)

    def call() -> None:
        step(batch)

    return call


def table(depths: Sequence[int], device: str, rounds: int) -> str:
    """Markdown: a step of each method ÷ the products in it."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(_IMAGES, 3072, generator=generator).to(device)
    labels = (torch.arange(_IMAGES) % 10).to(device)
    data = Tensors(images, labels, images[:1], labels[:1])
    lines = [
        f"| training step ÷ its matrix products | {' | '.join(METHODS)} |",
        f"|{'---|' * (len(METHODS) + 1)}",
    ]
    for depth in depths:
        calls: dict[str, Call] = {method: step_of(method, depth, data) for method in METHODS}
        calls["products"] = products(depth, RunSpec.batch_size, device)
        seconds = interleaved(calls, device, rounds)
        ratios = [f"{seconds[method] / seconds['products']:.2f}" for method in METHODS]
        lines.append(f"| depth {depth} | {' | '.join(ratios)} |")
    return "\n".join(lines)
