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
    """

    learning_rate: float
    train_loss: float
    test_loss: float
    test_accuracy: float
    seconds: float


@dataclass(frozen=True)
class RunResult:
    """What a run gave.

    Attributes:
        outcome: ``"diverged"`` when a training loss was not finite; the run ends with that epoch.
        curve: all epochs whose losses were finite.
        accuracy: percent after the last epoch; None for a diverged run.
        diverged_at: (epoch, step) of the first non-finite loss, both from 0; None otherwise.
        nonfinite_units: hidden units that ENorm left alone because of a non-finite norm.
    """

    outcome: Literal["finite", "diverged"]
    curve: tuple[Epoch, ...]
    accuracy: float | None
    diverged_at: tuple[int, int] | None
    nonfinite_units: int


def learning_rate(spec: RunSpec, epoch: int) -> float:
    """``lr_0 (1 − e / E)``: linear in the epoch, towards zero."""
    return spec.learning_rate * (1 - epoch / spec.epochs)


def train(
    spec: RunSpec, data: Tensors, on_epoch: Callable[[int, Epoch], None] | None = None
) -> RunResult:
    """Train and test as the report did: SGD without momentum, last weights tested.

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
    stepper = None
    if spec.uses_enorm:
        stepper = enorm.ENorm(model, optimizer, p=spec.p_norm, c=spec.c, batchnorm=spec.batchnorm)
    order = generator(spec, "order")
    curve: list[Epoch] = []
    diverged_at = None
    for number in range(spec.epochs):
        rate = learning_rate(spec, number)
        for group in optimizer.param_groups:
            group["lr"] = rate
        start = time.perf_counter()
        permutation = torch.randperm(len(data.train), generator=order).to(device)
        losses = _train_epoch(model, optimizer, stepper, data, permutation.split(spec.batch_size))
        # Reading the losses waits for the device, so the time is taken behind it.
        bad = (~losses.isfinite()).nonzero()
        seconds = time.perf_counter() - start
        if len(bad):
            diverged_at = (number, int(bad[0]))
            break
        sizes = torch.tensor([len(part) for part in permutation.split(spec.batch_size)])
        mean = float((losses.cpu().double() * sizes).sum() / sizes.sum())
        test_loss, accuracy = evaluate(model, data.test, data.test_labels)
        curve.append(Epoch(rate, mean, test_loss, accuracy, seconds))
        if on_epoch is not None:
            on_epoch(number, curve[-1])
    return RunResult(
        outcome="finite" if diverged_at is None else "diverged",
        curve=tuple(curve),
        accuracy=curve[-1].test_accuracy if diverged_at is None else None,
        diverged_at=diverged_at,
        nonfinite_units=0 if stepper is None else int(stepper.nonfinite),
    )


def _train_epoch(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    stepper: enorm.ENorm | None,
    data: Tensors,
    batches: tuple[Tensor, ...],
) -> Tensor:
    """Losses of the epoch's steps, shape ``(steps,)``, on the device."""
    model.train()
    losses = torch.empty(len(batches), device=data.train.device)
    for step, batch in enumerate(batches):
        loss = F.cross_entropy(model(data.train[batch]), data.train_labels[batch])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if stepper is not None:
            stepper.step()
        losses[step] = loss.detach()
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
