"""Models that could fool tracing: whatever the plan is, the function stays, or there is no plan."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import enorm
from enorm.tests.test_trace import Written, groups


class Shapes(nn.Module):
    """Layers of several kinds, a plain tensor, and whatever forward code a test gives."""

    def __init__(self, forward: Callable[[Shapes, Tensor], object]) -> None:
        super().__init__()
        self.thin = nn.Conv2d(3, 1, 1)
        self.wide = nn.Conv2d(3, 4, 1)
        self.fc = nn.Linear(4 * 4 + 4 * 4, 5)
        self.small = nn.Linear(4, 5)
        self.norm = nn.InstanceNorm2d(4, affine=True)
        self.factor = nn.Parameter(torch.rand(1, 4, 1, 1) + 0.5)
        self.batch = nn.Parameter(torch.rand(2, 1, 1, 1, 1) + 0.5)
        self.alias = self.wide.weight.data.view(4, 3)[:, 0].view(1, 4, 1, 1)
        self.kept: dict[str, Any] = {}
        self.code = forward

    def forward(self, x: Tensor) -> object:
        """The given code."""
        return self.code(self, x)


def widened(m: Shapes, x: Tensor) -> object:
    """One unit becomes four by broadcasting, in front of another layer's."""
    return m.fc(torch.cat([m.thin(x).relu() * m.factor, m.wide(x).relu()], 1).flatten(1))


def lifted(m: Shapes, x: Tensor) -> object:
    """Five axes: what stands first is no batch."""
    return m.small((m.wide(x).relu() * m.batch).flatten(1).view(-1, 4))


def kept_dims(m: Shapes, x: Tensor) -> object:
    """NumPy's name of an argument."""
    h = m.wide(x).relu().mean((2, 3), keepdims=True)
    return m.small(h.flatten(1))


def aliased(m: Shapes, x: Tensor) -> object:
    """A plain tensor that shares a parameter's memory."""
    return m.small((m.wide(x).relu() * m.alias).mean((2, 3)))


def normalized_twice(m: Shapes, x: Tensor) -> object:
    """Of a value whose number of axes is not certain."""
    return m.small(m.norm((m.wide(x) * m.batch[0]).relu()).relu().mean((2, 3)))


IMAGES = {f.__name__: f for f in (widened, lifted, kept_dims, aliased, normalized_twice)}


@pytest.mark.parametrize("example", [False, True], ids=["no example", "example"])
@pytest.mark.parametrize("name", IMAGES)
def test_images(name: str, example: bool) -> None:
    torch.manual_seed(0)
    model = Shapes(IMAGES[name]).double()
    model.alias = model.wide.weight.data.view(4, 3)[:, 0].view(1, 4, 1, 1)
    inputs = torch.randn(2, 3, 2, 2, dtype=torch.float64)
    with torch.no_grad():
        before = model(inputs)
        plan = enorm.trace(model, inputs if example else None)
        if plan.groups:
            enorm.balance_(model, plan, c=1.3)
        torch.testing.assert_close(model(inputs), before, rtol=1e-12, atol=1e-12)


def buffer_as_bias() -> nn.Module:
    """A bias that no optimizer knows."""
    model = chain()
    bias = torch.rand(6)
    del model[0].bias
    model[0].register_buffer("bias", bias)
    return model


def plain_bias() -> nn.Module:
    """A bias that is a tensor like any other."""
    model = chain()
    del model[0].bias
    model[0].bias = torch.rand(6)
    return model


def overlapping() -> nn.Module:
    """A weight that lies in memory twice."""
    model = chain()
    model[0].weight = nn.Parameter(torch.rand(21).as_strided((6, 6), (2, 2)))
    return model


def replaced_method() -> nn.Module:
    """A convolution whose instance has a method of its own."""
    model = nn.Sequential(nn.Conv1d(3, 4, 1), nn.ReLU(), nn.Conv1d(4, 5, 1))
    setattr(model[0], "_conv_forward", lambda x, w, b: F.conv1d(x, w, b).sigmoid())  # noqa: B010
    return model


def chain() -> nn.Sequential:
    """Two Linear layers."""
    return nn.Sequential(nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 6))


def short_bias() -> nn.Module:
    """A bias that is broadcast."""
    model = chain()
    model[0].bias = nn.Parameter(torch.rand(1))
    return model


def flat_weight() -> nn.Module:
    """A Linear that makes a number."""
    model = chain()
    model[2].weight = nn.Parameter(torch.rand(6))
    model[2].bias = None  # type: ignore[assignment]
    return model


def inference() -> nn.Module:
    """Parameters that cannot be written."""
    with torch.inference_mode():
        return chain()


UNUSABLE = {
    "buffer as bias": (buffer_as_bias, "its bias is computed, not a parameter"),
    "plain bias": (plain_bias, "its bias is computed, not a parameter"),
    "overlapping": (overlapping, "its parameters share memory with others"),
    "replaced method": (replaced_method, "its _conv_forward was replaced"),
    "short bias": (short_bias, "its bias has shape (1,), not (6,)"),
    "flat weight": (flat_weight, "its weight has 1 axes, not 2"),
    "inference mode": (
        inference,
        "its parameters were made in inference mode, and cannot be written",
    ),
}


@pytest.mark.parametrize("name", UNUSABLE)
def test_layers_that_cannot_be_rescaled(name: str) -> None:
    make, reason = UNUSABLE[name]
    plan = enorm.trace(make())
    assert plan.groups == ()
    assert reason in [skip.reason for skip in plan.skipped]


class Keeping(Written):
    """With places to put something, and more layers."""

    def __init__(self, code: Callable[[Any, Tensor], object]) -> None:
        super().__init__(code)
        self.features: Any = None
        self.seen: list[Any] = []
        self.c2 = nn.Linear(6, 6)
        self.d = nn.Linear(6, 6)


class Box:
    """An object of the user's."""

    value: object = None


BOX = Box()


def in_attribute(m: Keeping, h: Tensor) -> None:
    """As a loss on features would want it."""
    m.features = h


def in_list(m: Keeping, h: Tensor) -> None:
    """Among others."""
    m.seen.append({"h": (h,)})


def in_object(m: Keeping, h: Tensor) -> None:
    """Of which the model knows nothing."""
    BOX.value = h


@pytest.mark.parametrize("keep", [in_attribute, in_list, in_object])
def test_activations_that_the_code_keeps_are_outputs(
    keep: Callable[[Keeping, Tensor], None],
) -> None:
    def code(m: Keeping, x: Tensor) -> object:
        h = F.relu(m.a(x))
        keep(m, h)
        return m.c(F.relu(m.b(h)))

    model = Keeping(code)
    try:
        plan = enorm.trace(model)
    finally:
        BOX.value = None
    assert groups(plan) == [(["b"], ["c"], 6)]
    reasons = [(skip.where, skip.reason) for skip in plan.skipped]
    assert reasons == [("a", "the forward code keeps its activations")]


def test_what_one_mode_leaves_is_not_seen_by_the_other() -> None:
    """A cache that the first call fills, and every later one reads."""

    def code(m: Keeping, x: Tensor) -> object:
        if not m.seen:
            m.seen.append(F.relu(m.a(x)))
        return m.b(m.seen[0])

    model = Keeping(code)
    assert enorm.trace(model, torch.zeros(2, 6)).groups == ()
    assert model.seen == []


def test_hooks_on_the_model_itself_are_refused() -> None:
    model = chain()
    model.register_forward_hook(lambda module, inputs, output: output + module[0].weight.sum())
    with pytest.raises(enorm.UnsupportedModel, match="has forward hooks itself"):
        enorm.trace(model)


def test_constants_with_a_gradient() -> None:
    """They cannot be copied, and need not be."""
    factor = torch.rand(1, requires_grad=True) * 2

    def code(m: Written, x: Tensor) -> object:
        return m.b(F.relu(m.a(x)) * factor)

    assert len(enorm.trace(Written(code), torch.zeros(2, 6)).groups) == 1


def test_an_operand_that_stands_twice() -> None:
    plan = enorm.trace(Written(lambda m, x: m.b(F.prelu(h := m.a(x), h))))
    assert plan.groups == ()


def test_units_that_only_feed_each_other_are_left_out() -> None:
    """No output ever reads them, so that their energy has no minimum."""

    def code(m: Keeping, x: Tensor) -> object:
        h = F.relu(m.a(x))
        m.c(h + m.c2(F.relu(m.b(h))))
        return m.d(x)

    def closed(m: Keeping, x: Tensor) -> object:
        h = F.relu(m.a(x))
        _ = h + m.c2(F.relu(m.b(h)))
        return m.d(x)

    assert groups(enorm.trace(Keeping(code))) == [
        (["a", "c2"], ["b", "c"], 6),
        (["b"], ["c2"], 6),
    ]
    assert groups(enorm.trace(Keeping(closed))) == []


def test_gradients_that_were_expanded() -> None:
    """``sum().backward()`` leaves them without memory of their own."""
    model = chain()
    model[2].bias.grad = torch.ones(()).expand(6)
    model[0].bias.grad = torch.ones(()).expand(6)
    plain = copy.deepcopy(model)
    for parameter in (plain[0].bias, plain[2].bias):
        parameter.grad = torch.ones(6)
    enorm.balance_(model, c=1.2)
    enorm.balance_(plain, c=1.2)
    torch.testing.assert_close(model[0].bias.grad, plain[0].bias.grad, rtol=0, atol=0)


def test_parameters_without_values_are_refused() -> None:
    model = chain().to("meta")
    with pytest.raises(ValueError, match=r"parameter '0\.weight' is on the meta device"):
        enorm.balance_(model)
    with pytest.raises(ValueError, match=r"parameter '0\.weight' is on the meta device"):
        enorm.ENorm(model)


def test_powers_of_two_are_no_simultaneous_updates() -> None:
    """Rounded updates of neighbours together can raise the energy, for ever."""
    with pytest.raises(ValueError, match="jacobi"):
        enorm.balance_(chain(), solver="jacobi", power_of_two=True)
