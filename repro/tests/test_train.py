"""A run is the report's recipe, repeats bit for bit, and pairs with the other methods."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

import enorm
from repro.data import Images, Tensors, tensors
from repro.model import build, generator
from repro.spec import METHODS, RunSpec
from repro.train import Epoch, learning_rate, train


@pytest.fixture
def prepared(images: Images) -> Tensors:
    """On the CPU."""
    return tensors(images, 600, torch.device("cpu"))


def without_times(curve: tuple[Epoch, ...]) -> tuple[Epoch, ...]:
    """What has to repeat: everything but how long it took."""
    return tuple(replace(point, seconds=0.0) for point in curve)


@pytest.mark.parametrize("method", METHODS)
def test_same_spec_same_numbers(method: str, spec: RunSpec, prepared: Tensors) -> None:
    """Bit for bit, whatever ran in between."""
    run = replace(spec, method=method)  # type: ignore[arg-type]
    first = train(run, prepared)
    torch.manual_seed(5)
    torch.rand(7)
    second = train(run, prepared)
    assert without_times(first.curve) == without_times(second.curve)
    assert first.accuracy == second.accuracy == first.curve[-1].test_accuracy
    other = train(replace(run, seed=1), prepared)
    assert without_times(other.curve) != without_times(first.curve)


def test_methods_pair(spec: RunSpec) -> None:
    """At equal (seed, depth) all methods start from the same weights and see the same batches."""
    for first, second in ((METHODS[0], method) for method in METHODS[1:]):
        one, two = replace(spec, method=first), replace(spec, method=second)
        weights = [[p for p in build(run).parameters() if p.dim() == 2] for run in (one, two)]
        assert all(torch.equal(a, b) for a, b in zip(*weights, strict=True))
        orders = [torch.randperm(600, generator=generator(run, "order")) for run in (one, two)]
        assert torch.equal(*orders)
    deeper = torch.randperm(600, generator=generator(replace(spec, depth=3), "order"))
    assert not torch.equal(orders[0], deeper)


def test_initialisation_is_he_uniform_on_the_fan_in() -> None:
    """Report §3: bound ``sqrt(6 / fan_in)``, variance ``2 / fan_in``; shapes of the network."""
    model = build(RunSpec("bn", 3, 0, 0.1, bias=True))
    linears = [module for module in model if isinstance(module, torch.nn.Linear)]
    shapes = [tuple(linear.weight.shape) for linear in linears]
    assert shapes == [(500, 3072), *[(500, 500)] * 3, (10, 500)]
    for linear in linears:
        bound = (6 / linear.in_features) ** 0.5
        largest = linear.weight.abs().max().item()
        # Of n uniform numbers the largest falls short of the bound by 20 / n in one of e^20 cases.
        assert bound * (1 - 20 / linear.weight.numel()) < largest <= bound
        assert not linear.bias.any()
    kinds = [type(module).__name__ for module in model]
    assert kinds == [*["Linear", "BatchNorm1d", "ReLU"] * 4, "Linear"]


def test_the_rate_falls_linearly_towards_zero(spec: RunSpec, prepared: Tensors) -> None:
    paper = replace(spec, epochs=60, learning_rate=0.6)
    rates = [learning_rate(paper, epoch) for epoch in range(60)]
    assert rates == pytest.approx([0.6 - 0.01 * epoch for epoch in range(60)])
    assert [point.learning_rate for point in train(spec, prepared).curve] == [0.1, 0.05]


def test_one_epoch_is_plain_sgd_with_a_cycle_after_every_step(
    spec: RunSpec, prepared: Tensors
) -> None:
    """The recipe written out by hand, with the reference's Algorithm 1 in float64 as the cycle."""
    run = replace(spec, epochs=1)
    model = build(run)
    order = torch.randperm(600, generator=generator(run, "order"))
    total = 0.0
    for batch in (order[:256], order[256:512], order[512:]):
        loss = F.cross_entropy(model(prepared.train[batch]), prepared.train_labels[batch])
        total += loss.item() * len(batch)
        model.zero_grad()
        loss.backward()
        layers = []
        for weight in model.parameters():
            assert weight.grad is not None
            stepped = weight.detach() - 0.1 * (weight.grad + 1e-3 * weight.detach())
            layers.append(enorm.reference.ChainLayer(stepped))
        balanced, _ = enorm.reference.cycle(layers, p=2.0, c=1.2)
        with torch.no_grad():
            for weight, layer in zip(model.parameters(), balanced, strict=True):
                weight.copy_(layer.weight)
    result = train(run, prepared)
    # Three steps amplify single-precision rounding of the loss, about 1e-7, by far less than 100.
    assert result.curve[0].train_loss == pytest.approx(total / 600, rel=1e-5)
    logits = model(prepared.test)
    assert result.curve[0].test_loss == pytest.approx(
        F.cross_entropy(logits, prepared.test_labels).item(), rel=1e-4
    )


def test_divergence_is_a_result(spec: RunSpec, prepared: Tensors) -> None:
    """The run ends where the loss stops being finite, and says where that was."""
    result = train(replace(spec, learning_rate=1e8, method="baseline"), prepared)
    assert result.outcome == "diverged"
    assert result.accuracy is None
    assert result.diverged_at is not None
    epoch, step = result.diverged_at
    assert len(result.curve) == epoch
    assert 0 < step < 3
