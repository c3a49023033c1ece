"""One run: a spec and images in, a curve and an outcome out."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import SGD

import enorm
from repro.data import Tensors
from repro.engine import Stack, Step
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
            the run was stopped: a CPU stops at the loss that was not finite, unless a run beside
            it goes on, a GPU at the end of that epoch.
        scales: how far ENorm went, at steps 1, 2, 4 … of the first epoch and after every tenth,
            up to the step of a loss that was not finite.
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

    Args:
        spec: the run.
        data: images, as many for training as the spec says.
        on_epoch: called with each epoch's number and point of the curve.
    """
    inform = None if on_epoch is None else lambda _, epoch, point: on_epoch(epoch, point)
    return train_together([spec], data, inform)[0]


def train_together(
    specs: Sequence[RunSpec],
    data: Tensors,
    on_epoch: Callable[[int, int, Epoch], None] | None = None,
) -> list[RunResult]:
    """Several runs as one batched model, each as :func:`train` does it up to rounding.

    The images stay on their device; losses stay there too and are read once per epoch, so no step
    waits for the device. On a GPU a step is one captured graph.

    Args:
        specs: runs with one :func:`shape`.
        data: images, as many for training as the specs say.
        on_epoch: called with the run's index, and each epoch's number and point of its curve.

    Raises:
        ValueError: the runs differ in what they have to share.
    """
    if len({shape(spec) for spec in specs}) != 1:
        raise ValueError("runs that train together must be alike: group them by repro.train.shape")
    first = specs[0]
    held_back = first.held_back
    images = len(data.train) - held_back
    runs, step = begin(specs, data)
    sizes = torch.tensor([min(first.batch_size, images - i) for i in _starts(first, images)])
    for number in range(first.epochs):
        for run in runs:
            run.set_rate(learning_rate(run.spec, number))
        start = time.perf_counter()
        orders = torch.stack([torch.randperm(images, generator=run.order) for run in runs])
        orders = (orders if len(runs) > 1 else orders[0]).to(data.train.device)
        losses = _train_epoch(step, runs, orders.split(first.batch_size, -1))
        # Reading the losses waits for the device, so the time is taken behind it.
        read = losses.cpu().view(len(losses), len(runs)).T
        seconds = (time.perf_counter() - start) / len(runs)
        for index, run in enumerate(runs):
            if run.diverged_at is not None:
                continue
            bad = (~read[index].isfinite()).nonzero()
            if len(bad):
                run.diverged_at = (number, int(bad[0]))
                run.count_nonfinite()
                continue
            mean = float((read[index].double() * sizes).sum() / sizes.sum())
            test_loss, accuracy = evaluate(run.model, data.test, data.test_labels)
            validated = None
            if held_back:
                _, validated = evaluate(run.model, data.train[images:], data.train_labels[images:])
            point = Epoch(run.rate, mean, test_loss, accuracy, seconds, validated)
            run.curve.append(point)
            if run.rescaling is not None and (number + 1) % 10 == 0:
                run.rescaling.note()
            if on_epoch is not None:
                on_epoch(index, number, point)
        if all(run.diverged_at is not None for run in runs):
            break
    return [run.result() for run in runs]


def begin(specs: Sequence[RunSpec], data: Tensors) -> tuple[list[_Run], Step]:
    """Networks as initialised, and the step (forward, backward, SGD, cycle) that trains them."""
    runs = [_Run(spec, data.train.device) for spec in specs]
    stack = Stack([run.model for run in runs])
    for run in runs:
        run.prepare()
    return runs, Step(lambda batch: _step(stack, runs, data, batch), data.train.device)


def shape(spec: RunSpec) -> RunSpec:
    """Equal for runs that can train together: the spec without what each has for itself."""
    return replace(
        spec,
        method="bn" if spec.uses_batchnorm else "baseline",
        seed=0,
        learning_rate=0.0,
        weight_decay=0.0,
        c=1.0,
        p_norm=2.0,
        batchnorm="ignore",
        precondition_bias=False,
        order="cyclic",
        last_pair=True,
        init="uniform",
        schedule="linear",
    )


def _starts(spec: RunSpec, images: int) -> range:
    return range(0, images, spec.batch_size)


class _Run:
    """One run on its way."""

    def __init__(self, spec: RunSpec, device: torch.device) -> None:
        self.spec = spec
        self.model = build(spec).to(device)
        self.order = generator(spec, "order")
        self.curve: list[Epoch] = []
        self.steps_per_epoch = len(_starts(spec, spec.train_images - spec.held_back))
        self.diverged_at: tuple[int, int] | None = None
        self.rescaling: _Rescaling | None = None
        self.rate = spec.learning_rate
        self._nonfinite = 0

    def prepare(self) -> None:
        """Build what needs the parameters as they stay."""
        device = next(self.model.parameters()).device
        # A graph holds on to a tensor, where a number would be frozen into it.
        rate = torch.tensor(self.rate, device=device) if device.type == "cuda" else self.rate
        self.optimizer = SGD(
            self.model.parameters(), lr=rate, weight_decay=self.spec.weight_decay, fused=True
        )
        if self.spec.uses_enorm:
            self.rescaling = _Rescaling(self.spec, self.model, self.optimizer)

    def set_rate(self, rate: float) -> None:
        """For the steps to come."""
        self.rate = rate
        for group in self.optimizer.param_groups:
            if isinstance(group["lr"], Tensor):
                group["lr"].fill_(rate)
            else:
                group["lr"] = rate

    def step(self) -> None:
        """From gradients to weights."""
        self.optimizer.step()
        if self.rescaling is not None:
            self.rescaling.step()

    def count_nonfinite(self) -> None:
        """Note the units left alone so far."""
        if self.rescaling is not None:
            self._nonfinite = int(self.rescaling.stepper.nonfinite)

    def result(self) -> RunResult:
        """What the run gave."""
        accuracy: float | None = None
        last: float = math.inf
        if self.diverged_at is not None:
            epoch, step = self.diverged_at
            last = epoch * self.steps_per_epoch + step + 1
        else:
            self.count_nonfinite()
            best = max(
                range(len(self.curve)), key=lambda e: self.curve[e].validation_accuracy or 0.0
            )
            accuracy = self.curve[best if self.spec.validation else -1].test_accuracy
        return RunResult(
            outcome="finite" if self.diverged_at is None else "diverged",
            curve=tuple(self.curve),
            accuracy=accuracy,
            diverged_at=self.diverged_at,
            nonfinite_units=self._nonfinite,
            scales=() if self.rescaling is None else self.rescaling.noted(last),
        )


class _Rescaling:
    """ENorm between the steps of a run, and how far it has gone."""

    def __init__(self, spec: RunSpec, model: nn.Sequential, optimizer: SGD) -> None:
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
        device = next(model.parameters()).device
        self._log2_a = [
            torch.zeros(group.size, dtype=torch.float64, device=device)
            for group in self.stepper.plan.groups
        ]
        self._notes: list[tuple[int, list[Tensor]]] = []
        self._steps = 0

    def step(self) -> None:
        """One cycle."""
        self.stepper.step()
        torch._foreach_add_(self._log2_a, self.stepper.log2_scales)

    def stepped(self) -> None:
        """Keep count, and at steps 1, 2, 4 … 128 where the scales are.

        These are all in the first epoch of a paper run. Apart from :meth:`step`, which a graph
        repeats without coming here.
        """
        self._steps += 1
        if self._steps <= 128 and self._steps & (self._steps - 1) == 0:
            self.note()

    def note(self) -> None:
        """Keep where the scales are now, without waiting for the device."""
        self._notes.append((self._steps, [log2_a.median() for log2_a in self._log2_a]))

    def noted(self, last: float) -> tuple[ScalePoint, ...]:
        """What was kept, up to step ``last``."""
        return tuple(
            ScalePoint(step, tuple(float(value) for value in medians))
            for step, medians in self._notes
            if step <= last
        )


def _step(stack: Stack, runs: Sequence[_Run], data: Tensors, batch: Tensor) -> Tensor:
    losses = stack.backward(data, batch)
    for run in runs:
        run.step()
    return losses


def _train_epoch(step: Step, runs: Sequence[_Run], batches: Sequence[Tensor]) -> Tensor:
    """Losses of the epoch's steps on the device, ``(steps, *lead)``; fewer if all diverge."""
    for run in runs:
        run.model.train()
    losses = batches[0].new_empty((len(batches), *batches[0].shape[:-1]), dtype=torch.float32)
    for number, batch in enumerate(batches):
        losses[number] = step(batch)
        for run in runs:
            if run.rescaling is not None:
                run.rescaling.stepped()
        # What follows losses that are not finite decides nothing; asking a GPU would wait for it.
        if losses.device.type == "cpu" and not losses[number].isfinite().any():
            return losses[: number + 1]
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
