"""The batched model computes what the networks' own modules do."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from enorm.tests.capture import Watched
from repro.data import Images, Tensors, tensors
from repro.engine import Stack, Step
from repro.model import build
from repro.spec import METHODS, RunSpec
from repro.train import begin, train, train_together

BATCH = torch.arange(0, 512, 2)
CPU = torch.device("cpu")
# Fake tensors have addresses that mean nothing; optimizers look at them.
pytestmark = pytest.mark.filterwarnings("ignore:Accessing the data pointer of FakeTensor")


@pytest.fixture
def prepared(images: Images) -> Tensors:
    """On the CPU."""
    return tensors(images, 600, CPU)


@pytest.mark.parametrize("output", ["logits", "softmax"])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("method", ["baseline", "bn"])
def test_one_network_to_the_last_bit(
    method: str, bias: bool, output: str, spec: RunSpec, prepared: Tensors
) -> None:
    """Loss, every gradient and BatchNorm's statistics are those of autograd."""
    run = replace(spec, method=method, bias=bias, output=output)  # type: ignore[arg-type]
    ours, theirs = build(run), build(run)
    loss = Stack([ours]).backward(prepared, BATCH)
    expected = F.cross_entropy(theirs(prepared.train[BATCH]), prepared.train_labels[BATCH])
    expected.backward()
    assert torch.equal(loss, expected)
    for one, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert torch.equal(_gradient(one), _gradient(other))
    for name, buffer in ours.named_buffers():
        counter = name.endswith("num_batches_tracked")
        assert counter or torch.equal(buffer, theirs.get_buffer(name))


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("method", ["baseline", "bn"])
def test_several_networks_side_by_side(
    method: str, bias: bool, spec: RunSpec, prepared: Tensors
) -> None:
    """Each network has the gradients that it has alone, on images of its own."""
    runs = [replace(spec, method=method, bias=bias, seed=seed) for seed in range(3)]  # type: ignore[arg-type]
    batches = torch.stack([BATCH, BATCH + 1, BATCH + 50])
    models = [build(run) for run in runs]
    losses = Stack(models).backward(prepared, batches)
    for run, model, batch, loss in zip(runs, models, batches, losses, strict=True):
        alone = build(run)
        expected = Stack([alone]).backward(prepared, batch)
        # Only the order of summation differs: over at most 3072 products, in three layers.
        torch.testing.assert_close(loss, expected, rtol=1e-5, atol=0)
        largest = max(_gradient(one).abs().max().item() for one in alone.parameters())
        for one, other in zip(model.parameters(), alone.parameters(), strict=True):
            # Sums that cancel, as behind a BatchNorm, keep the rounding of what they add up.
            torch.testing.assert_close(
                _gradient(one), _gradient(other), rtol=1e-4, atol=1e-5 * largest
            )


def test_runs_end_together_as_they_do_alone(spec: RunSpec, prepared: Tensors) -> None:
    """Different rates, seeds, methods and depth factors in one batched model."""
    runs = [
        replace(spec, epochs=1),
        replace(spec, epochs=1, method="baseline", learning_rate=0.05),
        replace(spec, epochs=1, seed=1, c=1.0, order="jacobi"),
    ]
    for run, together in zip(runs, train_together(runs, prepared), strict=True):
        alone = train(run, prepared)
        assert together.outcome == alone.outcome == "finite"
        ours, theirs = together.curve[0], alone.curve[0]
        # Three steps amplify single-precision rounding, about 1e-7, by far less than 100.
        assert ours.train_loss == pytest.approx(theirs.train_loss, rel=1e-5)
        assert ours.test_loss == pytest.approx(theirs.test_loss, rel=1e-4)
        assert ours.learning_rate == theirs.learning_rate
        for one, other in zip(together.scales, alone.scales, strict=True):
            assert one.step == other.step
            assert one.log2_a == pytest.approx(other.log2_a, abs=1e-4)


@pytest.mark.parametrize("method", METHODS)
def test_a_run_that_diverges_leaves_the_others_alone(
    method: str, spec: RunSpec, prepared: Tensors
) -> None:
    fine = replace(spec, method=method)  # type: ignore[arg-type]
    wild = replace(fine, learning_rate=1e30, seed=1)
    first, second = train_together([fine, wild], prepared)
    assert first.outcome == "finite"
    assert len(first.curve) == 2
    alone = train(wild, prepared)
    assert (second.outcome, second.diverged_at) == (alone.outcome, alone.diverged_at)
    assert (second.outcome, second.accuracy) == ("diverged", None)


def test_runs_of_other_shapes_are_refused(spec: RunSpec, prepared: Tensors) -> None:
    with pytest.raises(ValueError, match="must be alike"):
        train_together([spec, replace(spec, depth=3)], prepared)


@pytest.mark.parametrize("beside", [False, True])
def test_scales_are_noted_up_to_the_step_that_diverges(
    beside: bool, spec: RunSpec, images: Images
) -> None:
    """Also where steps go on after it, as on a GPU or for the sake of a run beside it."""
    wild = replace(spec, learning_rate=1e20, bias=True, batch_size=40, epochs=1)
    fine = replace(wild, learning_rate=1e-4, seed=1)
    found = train_together([wild, fine] if beside else [wild], tensors(images, 600, CPU))[0]
    assert found.diverged_at is not None
    _, step = found.diverged_at
    assert step < 7
    assert [point.step for point in found.scales] == [n for n in (1, 2, 4) if n <= step + 1]


SETTINGS: dict[str, dict[str, Any]] = {
    **{method: {"method": method} for method in METHODS},
    "bias": {"bias": True},
    "preconditioned": {"bias": True, "precondition_bias": True},
    "jacobi": {"order": "jacobi"},
    "affine": {"method": "enorm+bn", "batchnorm": "affine"},
}


@pytest.mark.parametrize("runs", [1, 3])
@pytest.mark.parametrize("settings", SETTINGS)
def test_a_step_can_be_captured(
    settings: str, runs: int, spec: RunSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Forward, backward, SGD and cycle: on the device only, in memory that stays."""

    def sgd(parameters: Iterable[nn.Parameter], **_: Any) -> torch.optim.Optimizer:
        return torch.optim.SGD(parameters, lr=0.1, weight_decay=1e-3, foreach=False)

    one = replace(spec, **SETTINGS[settings])
    # Networks are drawn by a generator of the host and moved, autograd asks for the device, and
    # fused SGD has no fake: all of which work in a capture, and do not here.
    monkeypatch.setattr("repro.train.SGD", sgd)
    monkeypatch.setattr(Stack, "_loss", lambda _, outputs, __: (outputs.mean((-2, -1)), outputs))
    monkeypatch.setattr("repro.model.generator", lambda *_: None)
    monkeypatch.setattr(nn.utils, "skip_init", lambda kind, *args, **named: kind(*args, **named))
    monkeypatch.setattr(nn.Module, "to", lambda module, *_: module)
    with FakeTensorMode():
        with torch.device("cuda"):
            images, labels = torch.zeros(600, 3072), torch.zeros(600, dtype=torch.int64)
            data = Tensors(images, labels, images, labels)
            batch = torch.zeros((runs, 256) if runs > 1 else 256, dtype=torch.int64)
            _, step = begin([replace(one, seed=seed) for seed in range(runs)], data)
        for _ in range(2):
            step.function(batch)
        with Watched() as watched:
            step.function(batch)
    assert watched.host == []
    assert watched.freed() == []


@pytest.mark.parametrize("runs", [1, 2])
@pytest.mark.parametrize("settings", SETTINGS)
def test_a_gpu_trains_as_a_cpu_does(
    settings: str, runs: int, spec: RunSpec, images: Images
) -> None:
    """Direct steps, graphs of both sizes of batches, changing rates: all up to rounding."""
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device: CUDA graphs are not exercised")
    # Five batches and a smaller one, so that both are captured.
    one = replace(spec, epochs=5, batch_size=110, **SETTINGS[settings])
    specs = [replace(one, seed=seed) for seed in range(runs)]
    ours = train_together(specs, tensors(images, 600, torch.device("cuda")))
    theirs = train_together(specs, tensors(images, 600, CPU))
    for here, there in zip(ours, theirs, strict=True):
        assert (here.outcome, there.outcome) == ("finite", "finite")
        for epoch, other in zip(here.curve, there.curve, strict=True):
            # Thirty steps amplify single-precision rounding, about 1e-7, by far less than 10^4.
            assert epoch.train_loss == pytest.approx(other.train_loss, rel=1e-3)
            assert epoch.learning_rate == other.learning_rate
        for point, scale in zip(here.scales, there.scales, strict=True):
            assert point.step == scale.step
            assert point.log2_a == pytest.approx(scale.log2_a, abs=1e-2)


@pytest.mark.parametrize("method", METHODS)
def test_a_graph_replays_the_step(method: str, spec: RunSpec, images: Images) -> None:
    """On a GPU, bit for bit what the calls before capturing would have gone on to do."""
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device: CUDA graphs are not exercised")
    device = torch.device("cuda")
    prepared = tensors(images, 600, device)
    model = build(replace(spec, method=method)).to(device)  # type: ignore[arg-type]
    stack = Stack([model])
    optimizer = torch.optim.SGD(model.parameters(), lr=torch.tensor(0.1, device=device), fused=True)

    def once(batch: Tensor) -> Tensor:
        losses = stack.backward(prepared, batch)
        optimizer.step()
        return losses

    start = [parameter.detach().clone() for parameter in model.parameters()]
    batches = [torch.randperm(600, device=device)[:256] for _ in range(8)]
    direct = [once(batch).item() for batch in batches]
    with torch.no_grad():
        for parameter, value in zip(model.parameters(), start, strict=True):
            parameter.copy_(value)
    step = Step(once, device)
    assert [step(batch).item() for batch in batches] == direct


def _gradient(parameter: torch.nn.Parameter) -> Tensor:
    assert parameter.grad is not None
    return parameter.grad
