"""Training loops as people have them: what torch offers beside a plain step."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
from torch import nn
from torch._dynamo.testing import CompileCounter

import enorm
from enorm.tests.compiler import needs_compiler
from enorm.tests.test_followers import INPUTS, backward, network, tensors


def losses(model: nn.Module, optimizer: torch.optim.Optimizer, steps: int = 3) -> None:
    for _ in range(steps):
        optimizer.zero_grad()
        backward(model)
        optimizer.step()


def assert_equal(one: nn.Module, other: nn.Module) -> None:
    for mine, its in zip(one.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(mine, its, rtol=1e-12, atol=0)


def by_hand(kind: Any, **options: Any) -> nn.Module:
    """Three steps, each followed by a cycle."""
    model = network()
    optimizer = kind(model.parameters(), lr=0.01, **options)
    stepper = enorm.ENorm(model, optimizer, c=1.2)
    for _ in range(3):
        losses(model, optimizer, 1)
        stepper.step()
    return model


@pytest.mark.parametrize("options", [{"foreach": True}, {"fused": True}, {"foreach": False}])
@pytest.mark.parametrize("kind", [torch.optim.SGD, torch.optim.AdamW])
def test_ways_to_step(kind: type[torch.optim.Optimizer], options: dict[str, bool]) -> None:
    """However torch carries its step out, cycles see the same state."""
    momentum = {"momentum": 0.9} if kind is torch.optim.SGD else {"amsgrad": True}
    torch.testing.assert_close(
        by_hand(kind, **momentum, **options).get_parameter("0.weight"),
        by_hand(kind, **momentum).get_parameter("0.weight"),
        rtol=1e-9,
        atol=0,
    )


def test_schedulers_and_closures() -> None:
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda _: 1.0)
    enorm.ENorm(model, optimizer, c=1.2).attach()

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        backward(model)
        return torch.zeros(())

    for _ in range(3):
        optimizer.step(closure)
        schedule.step()
    assert_equal(model, by_hand(torch.optim.SGD, momentum=0.9))


def test_parameter_groups() -> None:
    model = network()
    groups = [{"params": [one], "weight_decay": 0.0} for one in model.parameters()]
    optimizer = torch.optim.SGD(groups, lr=0.01, momentum=0.9)
    enorm.ENorm(model, optimizer, c=1.2).attach()
    losses(model, optimizer)
    assert_equal(model, by_hand(torch.optim.SGD, momentum=0.9))


def test_gradient_accumulation() -> None:
    """Half a gradient twice is the gradient, with a cycle after the one step."""
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.005, momentum=0.9)
    stepper = enorm.ENorm(model, optimizer, c=1.2)
    stepper.attach()
    for _ in range(3):
        optimizer.zero_grad()
        backward(model)
        backward(model)
        optimizer.step()
    assert stepper.state_dict()["calls"] == 3
    assert_equal(model, by_hand(torch.optim.SGD, momentum=0.9))


def test_a_step_that_a_scaler_skips_is_no_step() -> None:
    model = network().float()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    stepper = enorm.ENorm(model, optimizer)
    stepper.attach()
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    inputs = INPUTS.float()
    for factor, calls in ((1.0, 1), (torch.inf, 1), (1.0, 2)):
        optimizer.zero_grad()
        scaler.scale(factor * model(inputs).sum()).backward()
        before = tensors(model)
        scaler.step(optimizer)
        scaler.update()
        assert stepper.state_dict()["calls"] == calls
        if factor == torch.inf:
            assert all(map(torch.equal, before, model.parameters()))


def test_autocast() -> None:
    """Mixed precision: the weights that are rescaled are the float32 ones."""
    model = network().float()
    before = copy.deepcopy(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.0, weight_decay=0.0)
    enorm.ENorm(model, optimizer).attach()
    with torch.autocast("cpu", torch.bfloat16):
        loss = model(INPUTS.float()).sum()
    loss.backward()
    optimizer.step()
    assert enorm.verify(before, model, INPUTS.float()).ok


@pytest.mark.parametrize("backend", ["eager", pytest.param("inductor", marks=needs_compiler)])
def test_a_compiled_model_trains_on(backend: str) -> None:
    """Cycles change weights in place, which a compiled model reads anew."""
    model = network()
    compiled = torch.compile(model, backend=backend)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    enorm.ENorm(model, optimizer, c=1.2).attach()
    losses(compiled, optimizer)  # type: ignore[arg-type]
    assert_equal(model, by_hand(torch.optim.SGD, momentum=0.9))


@pytest.mark.parametrize("attached", [False, True])
@pytest.mark.parametrize("backend", ["eager", pytest.param("inductor", marks=needs_compiler)])
def test_a_compiled_optimizer_step(backend: str, attached: bool) -> None:
    """The cycle runs beside the compiled code, whoever calls it."""
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    stepper = enorm.ENorm(model, optimizer, c=1.2)
    if attached:
        stepper.attach()
    step = torch.compile(optimizer.step, backend=backend)
    for _ in range(3):
        optimizer.zero_grad()
        backward(model)
        step()
        if not attached:
            stepper.step()
    assert_equal(model, by_hand(torch.optim.SGD, momentum=0.9))


def test_an_attached_cycle_is_not_compiled_along() -> None:
    """It goes one way or another in too many places for that."""
    counts = []
    for attached in (False, True):
        # Steps of SGD are compiled in other tests too.
        torch._dynamo.reset()
        model = network()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
        if attached:
            enorm.ENorm(model, optimizer).attach()
        counter = CompileCounter()
        step = torch.compile(lambda optimizer=optimizer: optimizer.step(), backend=counter)
        for _ in range(3):
            optimizer.zero_grad()
            backward(model)
            step()
        counts.append(counter.frame_count)
    assert counts[0] == counts[1] > 0


def test_a_deep_copy_goes_its_own_way() -> None:
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    stepper = enorm.ENorm(model, optimizer, c=1.2)
    losses(model, optimizer, 1)
    stepper.step()
    its_model, its_optimizer, its_stepper = copy.deepcopy((model, optimizer, stepper))
    for _ in range(2):
        losses(its_model, its_optimizer, 1)
        its_stepper.step()
    before = tensors(model)
    assert_equal(its_model, by_hand(torch.optim.SGD, momentum=0.9))
    assert all(map(torch.equal, before, model.parameters()))


@pytest.mark.parametrize(
    "settings",
    [{}, {"precondition_bias": True}, pytest.param({"compile": True}, marks=needs_compiler)],
)
@pytest.mark.parametrize("copied", [copy.deepcopy, lambda all_: pickle.loads(pickle.dumps(all_))])
def test_a_copy_goes_on_as_it_was_set_up(copied: Any, settings: dict[str, bool]) -> None:
    """Attached, preconditioned, compiled: an optimizer's own copy has no hooks."""
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    stepper = enorm.ENorm(model, optimizer, c=1.2, **settings)  # type: ignore[arg-type]
    stepper.attach()
    losses(model, optimizer, 2)
    its_model, its_optimizer, its_stepper = copied((model, optimizer, stepper))
    losses(model, optimizer, 2)
    losses(its_model, its_optimizer, 2)
    assert its_stepper.state_dict()["calls"] == stepper.state_dict()["calls"] == 4
    assert_equal(its_model, model)
    with pytest.raises(RuntimeError, match="attached to its optimizer already"):
        its_stepper.attach()


def test_a_copy_of_what_is_not_attached_is_not() -> None:
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    stepper = enorm.ENorm(model, optimizer)
    stepper.attach().remove()
    its_model, its_optimizer, its_stepper = copy.deepcopy((model, optimizer, stepper))
    losses(its_model, its_optimizer, 1)
    assert its_stepper.state_dict()["calls"] == 0


def test_one_attached_per_parameter() -> None:
    """A notebook's cell that runs twice must not leave two cycles, or two factors, per step."""
    model, other = network(), network()
    optimizer = torch.optim.SGD([*model.parameters(), *other.parameters()], lr=0.01)
    handle = enorm.ENorm(model, optimizer).attach()
    enorm.ENorm(other, optimizer).attach()
    stepper = enorm.ENorm(model, optimizer)
    text = (
        r"^parameter '.+' is rescaled by another ENorm attached to this optimizer: call remove\(\) "
        r"on what its attach\(\) returned, or build the optimizer anew$"
    )
    with pytest.raises(RuntimeError, match=text):
        stepper.attach()
    handle.remove()
    stepper.attach()
    losses(model, optimizer, 1)
    assert stepper.state_dict()["calls"] == 1


def test_several_optimizers_share_a_model() -> None:
    """Biases have another: the state of both is that of one that had all, and a cycle per step."""
    model = network()
    weights = [one for one in model.parameters() if one.dim() > 1]
    biases = [one for one in model.parameters() if one.dim() == 1]
    optimizers = [torch.optim.SGD(some, lr=0.01, momentum=0.9) for some in (weights, biases)]
    stepper = enorm.ENorm(model, optimizers, c=1.2)
    handle = stepper.attach()
    for _ in range(3):
        model.zero_grad()
        backward(model)
        for optimizer in optimizers:
            optimizer.step()
    assert stepper.state_dict()["calls"] == 3
    assert_equal(model, by_hand(torch.optim.SGD, momentum=0.9))
    handle.remove()
    with pytest.raises(ValueError, match="precondition_bias takes one optimizer, got 2"):
        enorm.ENorm(model, optimizers, precondition_bias=True)


@pytest.mark.parametrize("given", [[0, 1], [1, 0], [1]], ids=["both", "turned", "one"])
def test_gradients_that_another_optimizer_has_not_used_go_along(given: list[int]) -> None:
    """One accumulates over two steps of the other, whether ENorm knows of it or not."""

    def trained(when: int) -> nn.Module:
        model = network()
        slow = torch.optim.SGD(model[0].parameters(), lr=0.01)
        fast = torch.optim.SGD([*model[3].parameters(), *model[5].parameters()], lr=0.0)
        stepper = enorm.ENorm(model, [(slow, fast)[one] for one in given], c=1.2)
        for now in range(2):
            if now == when:
                stepper.step()
            fast.zero_grad()
            backward(model)
            fast.step()
        slow.step()
        return model

    # As the cycle keeps the function, it may come before all gradients or in between.
    assert_equal(trained(0), trained(1))


def test_gradients_stay_where_one_optimizer_has_used_all() -> None:
    """Then they are of no more use, and it would only cost time."""
    model = network()
    model[0].requires_grad_(False)
    optimizer = torch.optim.SGD([*model[3].parameters(), *model[5].parameters()], lr=0.01)
    stepper = enorm.ENorm(model, optimizer, c=1.2)
    losses(model, optimizer, 1)
    before = [one.grad.clone() for one in model.parameters() if one.grad is not None]
    stepper.step()
    after = [one.grad for one in model.parameters() if one.grad is not None]
    assert len(after) == 4
    assert all(map(torch.equal, before, after))


def test_another_models_optimizer_is_refused() -> None:
    foreign = torch.optim.SGD(network().parameters(), lr=0.01)
    for call in (enorm.ENorm, lambda *args: enorm.balance_(args[0], optimizer=args[1])):
        with pytest.raises(
            ValueError,
            match=r"has none of the parameters that are rescaled: pass the one that trains this "
            r"model$",
        ):
            call(network(), foreign)


def test_a_checkpoint_of_another_model_is_refused() -> None:
    state = enorm.ENorm(network()).state_dict()
    other = network()
    other[1] = nn.GELU()
    with pytest.raises(ValueError, match="state belongs to an ENorm that scales other parameters"):
        enorm.ENorm(other).load_state_dict(state)
    # Its units are the same.
    other[1] = nn.LeakyReLU(0.1)
    enorm.ENorm(other).load_state_dict(state)
