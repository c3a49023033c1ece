"""One run: a spec and images in, a curve and an outcome out."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import enorm
from repro.data import Tensors
from repro.model import build, generator
from repro.spec import RunSpec


@dataclass(frozen=True)
class Epoch:
    """One point of a curve.

    Attributes:
        learning_rate: of this epoch's steps.
        train_loss: mean cross-entropy over the epoch's images, while training.
        test_loss: mean cross-entropy over the test images, after the epoch.
        test_accuracy: percent of the test images classified right, after the epoch.
        seconds: wall time of the epoch's steps.
        validation_accuracy: percent of the images held back, where some are.
    """

    learning_rate: float
    train_loss: float
    test_loss: float
    test_accuracy: float
    seconds: float
    validation_accuracy: float | None = None


@dataclass(frozen=True)
class ScalePoint:
    """What ENorm had multiplied each hidden layer's units by, after so many steps.

    Attributes:
        step: steps taken.
        log2_a: median over a layer's units of ``log2 a``, a being the product of a unit's scales;
            one per hidden layer. A plain step moves a bias of that layer, in its original scale,
            with learning rate ``lr / a²``.
    """

    step: int
    log2_a: tuple[float, ...]


@dataclass(frozen=True)
class RunResult:
    """What a run gave.

    Attributes:
        outcome: ``"diverged"`` when a training loss was not finite; the run ends with that epoch.
        curve: all epochs whose losses were finite.
        accuracy: percent of the test images classified right by the weights that count: the last,
            or those of the epoch best on the images held back. None for a diverged run.
        diverged_at: (epoch, step) of the first non-finite loss, both from 0; None otherwise.
        nonfinite_units: hidden units that ENorm left alone because of a non-finite norm, until
            the run was stopped.
        scales: how far ENorm went, at steps 1, 2, 4 … of the first epoch and after every tenth.
    """

    outcome: Literal["finite", "diverged"]
    curve: tuple[Epoch, ...]
    accuracy: float | None
    diverged_at: tuple[int, int] | None
    nonfinite_units: int
    scales: tuple[ScalePoint, ...] = ()


def learning_rate(spec: RunSpec, epoch: int) -> float:
    """The rate of an epoch's steps, by the spec's schedule; the notebook's falls below zero."""
    if spec.schedule == "constant":
        return spec.learning_rate
    if spec.schedule == "notebook":
        return spec.learning_rate - 0.1 * epoch / spec.epochs
    return spec.learning_rate * (1 - epoch / spec.epochs)


def train(
    spec: RunSpec, data: Tensors, on_epoch: Callable[[int, Epoch], None] | None = None
) -> RunResult:
    """Train and test as the report did: SGD without momentum, last weights tested by default.

    The images stay on their device; losses stay there too and are read once per epoch, so no step
    waits for the device.

    Args:
        spec: the run.
        data: images, as many for training as the spec says.
        on_epoch: called with each epoch's number and point of the curve.
    """
    device = data.train.device
    model = build(spec).to(device)
    optimizer = torch.optim.SGD(
        model.parameters(), lr=spec.learning_rate, weight_decay=spec.weight_decay
    )
    rescaling = _Rescaling(spec, model, optimizer) if spec.uses_enorm else None
    order = generator(spec, "order")
    held_back = len(data.train) // 5 if spec.validation else 0
    images = len(data.train) - held_back
    curve: list[Epoch] = []
    diverged_at = None
    for number in range(spec.epochs):
        rate = learning_rate(spec, number)
        for group in optimizer.param_groups:
            group["lr"] = rate
        start = time.perf_counter()
        permutation = torch.randperm(images, generator=order).to(device)
        losses = _train_epoch(model, optimizer, rescaling, data, permutation.split(spec.batch_size))
        # Reading the losses waits for the device, so the time is taken behind it.
        bad = (~losses.isfinite()).nonzero()
        seconds = time.perf_counter() - start
        if len(bad):
            diverged_at = (number, int(bad[0]))
            break
        sizes = torch.tensor([len(part) for part in permutation.split(spec.batch_size)])
        mean = float((losses.cpu().double() * sizes).sum() / sizes.sum())
        test_loss, accuracy = evaluate(model, data.test, data.test_labels)
        validated = None
        if held_back:
            _, validated = evaluate(model, data.train[images:], data.train_labels[images:])
        curve.append(Epoch(rate, mean, test_loss, accuracy, seconds, validated))
        if rescaling is not None and (number + 1) % 10 == 0:
            rescaling.note()
        if on_epoch is not None:
            on_epoch(number, curve[-1])
    result: float | None = None
    if diverged_at is None:
        best = max(range(len(curve)), key=lambda e: curve[e].validation_accuracy or 0.0)
        result = curve[best if held_back else -1].test_accuracy
    return RunResult(
        outcome="finite" if diverged_at is None else "diverged",
        curve=tuple(curve),
        accuracy=result,
        diverged_at=diverged_at,
        nonfinite_units=0 if rescaling is None else int(rescaling.stepper.nonfinite),
        scales=() if rescaling is None else rescaling.noted(),
    )


class _Rescaling:
    """ENorm between the steps of a run, and how far it has gone."""

    def __init__(self, spec: RunSpec, model: nn.Sequential, optimizer: torch.optim.SGD) -> None:
        last = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)][-1]
        self.stepper = enorm.ENorm(
            model,
            optimizer,
            plan=enorm.trace(model, exclude=() if spec.last_pair else (last,)),
            p=spec.p_norm,
            c=spec.c,
            order=spec.order,
            batchnorm=spec.batchnorm,
            precondition_bias=spec.precondition_bias,
        )
        self._steps = 0
        self._log2_a: list[Tensor] = []
        self._notes: list[tuple[int, list[Tensor]]] = []

    def step(self) -> None:
        """One cycle."""
        self.stepper.step()
        scales = self.stepper.log2_scales
        if not self._log2_a:
            self._log2_a = [torch.zeros_like(z) for z in scales]
        torch._foreach_add_(self._log2_a, scales)
        self._steps += 1
        # 1, 2, 4 … up to 128: all in the first epoch of a paper run.
        if self._steps <= 128 and self._steps & (self._steps - 1) == 0:
            self.note()

    def note(self) -> None:
        """Keep where the scales are now, without waiting for the device."""
        self._notes.append((self._steps, [log2_a.median() for log2_a in self._log2_a]))

    def noted(self) -> tuple[ScalePoint, ...]:
        """What was kept."""
        return tuple(
            ScalePoint(step, tuple(float(value) for value in medians))
            for step, medians in self._notes
        )


def _train_epoch(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    rescaling: _Rescaling | None,
    data: Tensors,
    batches: tuple[Tensor, ...],
) -> Tensor:
    """Losses of the epoch's steps on the device, shape ``(steps,)``; fewer if one diverges."""
    model.train()
    losses = torch.empty(len(batches), device=data.train.device)
    for step, batch in enumerate(batches):
        loss = F.cross_entropy(model(data.train[batch]), data.train_labels[batch])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if rescaling is not None:
            rescaling.step()
        losses[step] = loss.detach()
        # What follows a loss that is not finite decides nothing; asking a GPU would wait for it.
        if losses.device.type == "cpu" and not losses[step].isfinite():
            return losses[: step + 1]
    return losses


@torch.no_grad()
def evaluate(model: nn.Module, images: Tensor, labels: Tensor) -> tuple[float, float]:
    """Mean cross-entropy and accuracy in percent, in eval mode; leaves the model in train mode."""
    model.eval()
    loss, right = 0.0, 0
    for part, target in zip(images.split(2000), labels.split(2000), strict=True):
        logits = model(part)
        loss += float(F.cross_entropy(logits, target, reduction="sum"))
        right += int((logits.argmax(1) == target).sum())
    model.train()
    mean = loss / len(labels)
    return (mean if math.isfinite(mean) else math.inf), 100 * right / len(labels)
