"""What ``verify`` says of a network that was changed: that, by how much, and where to look."""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import prune

import enorm


def chain() -> nn.Sequential:
    """Four layers, the units of each rescaled by a group of their own."""
    torch.manual_seed(0)
    layers = [nn.Linear(5, 7), nn.ReLU(inplace=True), nn.Linear(7, 6), nn.LeakyReLU()]
    return nn.Sequential(*layers, nn.Linear(6, 4), nn.ReLU(), nn.Linear(4, 2)).double()


def convolutional() -> nn.Sequential:
    """Units along axis 1, behind BatchNorm and in front of a flatten."""
    torch.manual_seed(0)
    first = [nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.ReLU(inplace=True)]
    second = [nn.ConvTranspose2d(4, 3, 2), nn.ReLU(), nn.GroupNorm(1, 3), nn.ReLU(), nn.Flatten()]
    third = [nn.Linear(75, 6), nn.BatchNorm1d(6), nn.ReLU()]
    return nn.Sequential(*first, *second, *third, nn.Linear(6, 2)).double()


def sequence() -> nn.Sequential:
    """Units along the axis before the last, then the last."""
    torch.manual_seed(0)
    first = [nn.Conv1d(2, 4, 3), nn.InstanceNorm1d(4, affine=True), nn.ReLU(), nn.Conv1d(4, 6, 1)]
    second = [nn.LayerNorm(5), nn.ReLU(), nn.Linear(5, 3)]
    return nn.Sequential(*first, nn.ReLU(), *second).double()


NETWORKS = {
    "chain": (chain, (16, 5)),
    "convolutional": (convolutional, (6, 2, 6, 6)),
    "sequence": (sequence, (6, 2, 7)),
}


def producers(group: enorm.Group | None) -> list[str]:
    assert group is not None
    return [one.module for one in group.producers]


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("name", NETWORKS)
def test_every_group_is_only_rescaled(name: str, training: bool) -> None:
    """Rounding is all that remains of any unit, whichever axis it lies along."""
    make, shape = NETWORKS[name]
    before = make()
    after = copy.deepcopy(before)
    enorm.balance_(after)
    found = enorm.verify(before, after, torch.randn(*shape).double(), training=training)
    assert found.ok
    assert found.change is not None
    # A unit's values are sums of at most 75 products of numbers of order one.
    assert 0 < found.change < 75 * 2**-50


@pytest.mark.parametrize(
    ("name", "spoiled", "producer"),
    [
        ("chain", "2.weight", "2"),
        ("chain", "4.bias", "4"),
        ("convolutional", "3.weight", "5"),
        ("convolutional", "1.bias", "1"),
        ("convolutional", "9.bias", "9"),
        ("sequence", "1.bias", "1"),
    ],
)
def test_the_group_that_was_changed_is_named(name: str, spoiled: str, producer: str) -> None:
    """One entry is off by a tenth: that shows where it stands, or behind, and never in front."""
    make, shape = NETWORKS[name]
    before = make()
    after = copy.deepcopy(before)
    enorm.balance_(after)
    with torch.no_grad():
        after.get_parameter(spoiled).view(-1)[1] += 0.1
    found = enorm.verify(before, after, torch.randn(*shape).double())
    assert not found.ok
    first = [producers(group)[0] for group in enorm.trace(before).groups]
    assert first.index(producers(found.group)[0]) >= first.index(producer)
    assert found.change is not None
    assert found.change > 1e-4
    assert f"units of {', '.join(producers(found.group))} changed most" in str(found)
    assert str(found).startswith("function changed: ")


def test_a_unit_that_changes_its_sign_changed_wholly() -> None:
    before = chain()
    after = copy.deepcopy(before)
    with torch.no_grad():
        after.get_parameter("2.weight").neg_()
        after.get_parameter("2.bias").neg_()
    found = enorm.verify(before, after, torch.randn(9, 5).double())
    assert producers(found.group) == ["2"]
    assert found.change == 1.0


def test_not_finite_or_of_another_width_changed_wholly() -> None:
    before = chain()
    after, wider = copy.deepcopy(before), copy.deepcopy(before)
    nn.init.constant_(after.get_parameter("0.bias"), float("nan"))
    assert enorm.verify(before, after, torch.randn(9, 5).double()).change == 1.0
    wider[2], wider[4] = nn.Linear(7, 8).double(), nn.Linear(8, 4).double()
    assert enorm.verify(before, wider, torch.randn(9, 5).double()).change == 1.0


def test_dead_units_did_not_change() -> None:
    before = chain()
    nn.init.zeros_(before.get_parameter("2.weight"))
    nn.init.zeros_(before.get_parameter("2.bias"))
    found = enorm.verify(before, copy.deepcopy(before), torch.randn(9, 5).double())
    assert (found.error, found.change, found.ok) == (0.0, 0.0, True)


def test_without_groups_there_is_none_to_name() -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.GELU(), nn.Linear(3, 2))
    found = enorm.verify(model, model, torch.randn(4, 3))
    assert (found.group, found.change) == (None, None)
    assert "units of" not in str(found)
    assert "no bound is known (no rounding bound is known for 1 (GELU))" in str(found)


def test_a_plan_says_what_tracing_cannot() -> None:
    """The branch cannot be traced; its layers can be named."""

    class Branching(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            """Twice as much for positive sums."""
            h = torch.relu(self.a(x))
            result: torch.Tensor = self.b(2 * h if x.sum() > 0 else h)
            return result

    before = Branching().double()
    after = copy.deepcopy(before)
    plan = enorm.plan_from_layers(before, ["a", "b"])
    enorm.balance_(after, plan)
    inputs = torch.randn(6, 4).double()
    assert enorm.verify(before, after, inputs).group is None
    found = enorm.verify(before, after, inputs, plan=plan)
    assert found.ok
    assert producers(found.group) == ["a"]


def test_the_models_are_left_as_they_were() -> None:
    model = convolutional()
    state = copy.deepcopy(model.state_dict())
    enorm.verify(model, model, torch.randn(6, 2, 6, 6).double(), training=True)
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert not any(module._forward_hooks for module in model.modules())


def test_a_wrecked_network_is_not_kept_because_noise_wrecks_it_too() -> None:
    """Of what overflows when shaken nothing can be said, and nothing is claimed."""
    torch.manual_seed(0)
    layers = [layer for _ in range(20) for layer in (nn.Linear(8, 8), nn.ReLU())]
    before = nn.Sequential(*layers, nn.Linear(8, 3)).half()
    after = copy.deepcopy(before)
    stepper = enorm.ENorm(after, c=2.0)
    for _ in range(60):
        stepper.step()
    found = enorm.verify(before, after, torch.randn(16, 8).half(), rewrites=60)
    assert found.ratio is not None
    assert found.ratio <= 1
    assert not found.ok
    with torch.no_grad():
        before.get_parameter("0.weight").mul_(1e4)
        before.get_parameter("2.weight").mul_(1e4)
    found = enorm.verify(before, after, torch.randn(16, 8).half())
    assert math.isnan(found.noise)
    assert not found.ok


class Coded(nn.Module):
    """Layers, and whatever a test makes of their outputs."""

    def __init__(self, code: Callable[[Coded, Tensor], object]) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(5, 6), nn.Linear(6, 2), nn.Linear(5, 2)
        self.code = code

    def forward(self, x: Tensor) -> object:
        """The given code."""
        return self.code(self, x)


def test_code_that_writes_into_its_input() -> None:
    """Both get what the caller gave, who finds it as it was."""

    def code(m: Coded, x: Tensor) -> object:
        x -= 0.5
        return m.b(torch.relu(m.a(x)))

    model, x = Coded(code), torch.randn(7, 5)
    given = x.clone()
    after = copy.deepcopy(model)
    enorm.balance_(after)
    assert enorm.verify(model, after, x).ok
    assert torch.equal(x, given)


def test_masked_outputs() -> None:
    """Infinities of one sign are alike; those of two are not, nor is one beside a number."""

    def code(m: Coded, x: Tensor) -> object:
        return m.b(torch.relu(m.a(x))).masked_fill(torch.tensor([True, False]), -math.inf)

    model = Coded(code)
    after = copy.deepcopy(model)
    enorm.balance_(after)
    result = enorm.verify(model, after, torch.randn(7, 5))
    assert result.ok
    assert result.error < 1e-5
    for other in (math.inf, 0.0):
        after = Coded(lambda m, x, other=other: torch.full((7, 2), other))  # type: ignore[misc]
        after.load_state_dict(model.state_dict())
        assert not enorm.verify(model, after, torch.randn(7, 5)).ok


def test_complex_outputs() -> None:
    """The imaginary part counts."""

    def code(m: Coded, x: Tensor) -> object:
        return torch.complex(m.c(x), m.b(torch.relu(m.a(x))))

    model, x = Coded(code), torch.randn(7, 5)
    after = copy.deepcopy(model)
    assert enorm.verify(model, after, x).ok
    with torch.no_grad():
        after.b.weight.mul_(5)
    assert not enorm.verify(model, after, x).ok


def _switches() -> list[str]:
    """Float32 precision of convolutions and products, on a GPU and on a CPU."""
    backends: Any = torch.backends
    operations = backends.cuda.matmul, backends.cudnn.conv, backends.mkldnn.matmul
    return [one.fp32_precision for one in operations]


@pytest.mark.skipif(not hasattr(torch.backends.cudnn, "conv"), reason="torch is older than 2.9")
@pytest.mark.parametrize("precision", ["highest", "high", "medium"])
def test_products_are_in_full_float32(precision: str) -> None:
    """Where the user wants fewer bits, only meanwhile, and also where the network fails."""

    class Seen(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            seen.append(_switches())
            return super().forward(x)

    seen: list[list[str]] = []
    model = nn.Sequential(Seen(3, 3), nn.ReLU(), nn.Linear(3, 2))
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(precision)
    try:
        own = _switches()
        # Convolutions on a GPU may use TF32 by default.
        assert own[1] == "tf32"
        assert enorm.verify(model, copy.deepcopy(model), torch.ones(4, 3)).ok
        assert _switches() == own
        with pytest.raises(RuntimeError, match="shapes"):
            enorm.verify(model, model, torch.ones(4, 5))
        assert _switches() == own
        assert torch.get_float32_matmul_precision() == precision
        assert torch.backends.cudnn.allow_tf32
    finally:
        torch.set_float32_matmul_precision(before)
    assert ["ieee"] * 3 in seen


def test_autocast_is_no_change() -> None:
    """Sums and products are in half precision then, for which the bound of float32 is none."""

    def halved(m: Coded, x: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            h: Tensor = m.b(torch.relu(m.a(x)))
        return h.float()

    torch.manual_seed(0)
    model = Coded(halved)
    before, x = copy.deepcopy(model), torch.randn(7, 5)
    enorm.balance_(model)
    found = enorm.verify(before, model, x)
    assert found.ok
    assert found.bound is None
    assert found.reason == "no rounding bound is known for operations under autocast"
    with torch.no_grad():
        model.b.weight.mul_(1.5)
    assert not enorm.verify(before, model, x).ok


@pytest.mark.parametrize("training", [False, True])
def test_models_that_hold_what_they_have_computed(training: bool) -> None:
    """As pruned ones do, which refuse to be copied then."""
    model = nn.Sequential(nn.Linear(5, 6), nn.ReLU(), nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 2))
    prune.l1_unstructured(model[0], "weight", 0.3)
    x = torch.randn(7, 5)
    model(x)
    with torch.no_grad():
        model(x)
    before = copy.deepcopy(model)
    enorm.balance_(model)
    for one in (before, model):
        one(x)
    with pytest.raises(RuntimeError, match="deepcopy"):
        copy.deepcopy(model)
    assert enorm.verify(before, model, x, training=training).ok


def test_a_copy_with_compiled_parts_is_like_its_original() -> None:
    with warnings.catch_warnings():
        # Newer versions of torch advise against it.
        warnings.simplefilter("ignore")
        scripted = torch.jit.script(nn.Sequential(nn.Tanh()))
        model = nn.Sequential(
            nn.Linear(5, 6), nn.ReLU(), nn.Linear(6, 6), scripted, nn.Linear(6, 2)
        )
        plan, before = enorm.trace(model), copy.deepcopy(model)
    enorm.balance_(model, plan)
    found = enorm.verify(before, model, torch.randn(7, 5), plan=plan)
    assert found.ok


def test_what_cannot_be_compared() -> None:
    model, x = Coded(lambda m, x: None), torch.randn(7, 5)
    with pytest.raises(ValueError, match="return no numbers to compare"):
        enorm.verify(model, model, x)
    nothing: Any = None
    words: Any = "plan"
    with pytest.raises(TypeError, match=r"must be a torch\.nn\.Module each, got a NoneType"):
        enorm.verify(model, nothing, x)
    with pytest.raises(TypeError, match=r"plan must be one that enorm\.trace"):
        enorm.verify(model, model, x, plan=words)
    with pytest.raises(ValueError, match="plan was traced from another model"):
        enorm.verify(model, model, x, plan=enorm.trace(nn.Linear(2, 2)))
    with pytest.raises(TypeError, match="training must be True or False, got 1"):
        enorm.verify(model, model, x, training=1)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"model must be a torch\.nn\.Module, got"):
        enorm.error_bound(words, x)
    with pytest.raises(enorm.UnsupportedModel, match=r"^inputs has 2 tensors, and forward takes x"):
        enorm.error_bound(model, (x, x))
