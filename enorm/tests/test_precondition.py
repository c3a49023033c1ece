"""``precondition_bias``: what it needs, what it leaves behind, what a checkpoint holds."""

from __future__ import annotations

import copy
import gc
import math

import pytest
import torch
from torch import Tensor, nn

import enorm


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        *[nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 2)]
    ).double()


def gradient(parameter: Tensor) -> Tensor:
    assert parameter.grad is not None
    return parameter.grad


def backward(model: nn.Module, seed: int = 1, *, to_none: bool = True) -> None:
    model.zero_grad(set_to_none=to_none)
    torch.manual_seed(seed)
    model(torch.randn(8, 4, dtype=torch.float64)).square().sum().backward()


def test_it_needs_plain_sgd() -> None:
    model = network()
    needs = r"^precondition_bias needs the optimizer: ENorm\(model, optimizer, \.\.\.\)$"
    with pytest.raises(ValueError, match=needs):
        enorm.ENorm(model, precondition_bias=True)
    with pytest.raises(
        TypeError, match=r"got Adam: others do not step in proportion to the gradient$"
    ):
        enorm.ENorm(model, torch.optim.Adam(model.parameters()), precondition_bias=True)


@pytest.mark.parametrize("named", [False, True])
def test_a_closure_finds_the_same_gradients(named: bool) -> None:
    """Multiplied behind it, as otherwise in front of the step; restored after."""
    found = []
    for closed in (False, True):
        model = network()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
        stepper = enorm.ENorm(model, optimizer, c=1.5, precondition_bias=True)
        stepper.attach()
        losses: list[float] = []

        def closure(model: nn.Module = model, losses: list[float] = losses) -> float:
            backward(model)
            losses.append(1.0)
            return 2.5

        for _ in range(4):
            if not closed:
                closure()
                optimizer.step()
            elif named:
                assert optimizer.step(closure=closure) == 2.5
            else:
                assert optimizer.step(closure) == 2.5
        assert len(losses) == 4
        found.append([*model.parameters(), *(gradient(one) for one in model.parameters())])
    assert all(map(torch.equal, *found))
    assert max(float(one.abs().max()) for one in stepper.log2_scales) > 0.05


@pytest.mark.parametrize("again", [False, True], ids=["the same gradients", "others"])
def test_a_step_that_was_given_up(again: bool) -> None:
    """Its gradients are not multiplied once more, nor others taken for them."""
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    stepper = enorm.ENorm(model, optimizer, c=1.5, precondition_bias=True)
    stepper.step()
    plain = copy.deepcopy(stepper)

    def fail(*_: object) -> None:
        raise InterruptedError

    backward(model)
    handle = optimizer.register_step_pre_hook(fail)
    with pytest.raises(InterruptedError):
        optimizer.step()
    handle.remove()
    if again:
        backward(model, 2, to_none=False)
    optimizer.step()
    (other,) = plain._followers.optimizers
    backward(plain._model, 2 if again else 1)
    other.step()
    assert all(map(torch.equal, model.parameters(), plain._model.parameters()))
    gradients = [[gradient(one) for one in one.parameters()] for one in (model, plain._model)]
    assert all(map(torch.equal, *gradients))


@pytest.mark.parametrize("factor", [1.0, 1e-170, 1e170])
def test_gradients_come_back_bit_for_bit(factor: float) -> None:
    """Also where a² leaves float64's range; a gradient of zero is zero there too."""
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    stepper = enorm.ENorm(model, optimizer, c=1.2, precondition_bias=True)
    stepper.step()
    state = stepper.state_dict()
    state["log2_a"] = [one + math.log2(factor) for one in state["log2_a"]]
    stepper.load_state_dict(state)
    backward(model)
    bias = model.get_parameter("0.bias")
    gradient(bias)[0] = 0
    before = [gradient(parameter).clone() for parameter in model.parameters()]
    optimizer.step()
    after = [gradient(parameter) for parameter in model.parameters()]
    assert all(map(torch.equal, before, after))
    assert bias[0].isfinite()


def test_a_step_moves_a_bias_by_a_squared() -> None:
    """``b' ← b' − lr a² ∇b'``, with a read off the bias itself; the last layer's steps plainly."""
    model = network()
    hidden, last = model.get_parameter("0.bias"), model.get_parameter("4.bias")
    first = hidden.detach().clone()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    stepper = enorm.ENorm(model, optimizer, c=1.2, precondition_bias=True)
    stepper.step()
    a = hidden.detach() / first
    backward(model)
    expected = [
        (bias - 0.1 * square * gradient(bias)).detach()
        for bias, square in ((hidden, a.square()), (last, torch.ones_like(last)))
    ]
    optimizer.step()
    for bias, value in zip((hidden, last), expected, strict=True):
        torch.testing.assert_close(bias.detach(), value, rtol=1e-12, atol=0)


def test_a_bias_without_gradient_is_left_alone() -> None:
    model = network()
    bias = model.get_parameter("0.bias").requires_grad_(False)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    stepper = enorm.ENorm(model, optimizer, precondition_bias=True)
    backward(model)
    optimizer.step()
    stepper.step()
    assert bias.grad is None


def test_training_goes_on_from_a_checkpoint() -> None:
    models = [network(), network()]
    optimizers, steppers = [], []
    for model in models:
        optimizers.append(torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9))
        steppers.append(enorm.ENorm(model, optimizers[-1], c=1.2, precondition_bias=True))

    def train(index: int) -> None:
        backward(models[index])
        optimizers[index].step()
        steppers[index].step()

    for _ in range(3):
        train(0)
    # An optimizer takes the buffers of a state dict as they are; a file would hold copies.
    saved = copy.deepcopy([part[0].state_dict() for part in (models, optimizers, steppers)])
    models[1].load_state_dict(saved[0])
    optimizers[1].load_state_dict(saved[1])
    steppers[1].load_state_dict(saved[2])
    for _ in range(3):
        train(0)
        train(1)
    assert all(map(torch.equal, models[0].parameters(), models[1].parameters()))


def test_a_checkpoint_of_the_other_kind_is_refused() -> None:
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    plain = enorm.ENorm(model, optimizer)
    preconditioned = enorm.ENorm(model, optimizer, precondition_bias=True)
    assert plain.state_dict()["log2_a"] is None
    for one, other, kind in ((plain, preconditioned, True), (preconditioned, plain, False)):
        text = f"^state belongs to an ENorm with precondition_bias={kind}: build this one alike$"
        with pytest.raises(ValueError, match=text):
            one.load_state_dict(other.state_dict())


def test_hooks_end_with_the_stepper() -> None:
    """An ENorm built anew, as after a checkpoint, must not find the old one's hooks at work."""
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    stepper = enorm.ENorm(model, optimizer, precondition_bias=True)
    assert optimizer._optimizer_step_pre_hooks
    del stepper
    gc.collect()
    assert not optimizer._optimizer_step_pre_hooks
    assert not optimizer._optimizer_step_post_hooks
