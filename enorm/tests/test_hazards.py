"""Models that could fool tracing: whatever the plan is, the function stays, or there is no plan."""

from __future__ import annotations

import copy
import functools
import random
import types
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook

import enorm
from enorm.tests.test_trace import Written, assert_never_wrong, groups


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

    value: Any = None


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


class Acting(nn.Module):
    """Two layers and an activation that is a function."""

    def __init__(self, act: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.a, self.b, self.act = nn.Linear(3, 3), nn.Linear(3, 3), act

    def forward(self, x: Tensor) -> Tensor:
        """Whatever the activation is."""
        out: Tensor = self.b(self.act(self.a(x)))
        return out


def with_slope(slope: Any, inner: Any = None) -> Callable[[Tensor], Tensor]:
    """Functions of one name, of one code."""
    return lambda t: (inner or F.leaky_relu)(t, slope or 0.5)


def counting() -> Callable[[Tensor], Tensor]:
    """Counts its calls."""
    count = 0

    def act(t: Tensor) -> Tensor:
        nonlocal count
        count += 1
        return F.relu(t)

    return act


def recursive() -> Callable[[Tensor], Tensor]:
    """Holds itself."""

    def act(t: Tensor, depth: int = 0) -> Tensor:
        return F.relu(t) if depth else act(t, 1)

    return act


def test_a_plan_is_of_the_functions_that_a_model_holds() -> None:
    """Also where they have one name, as two lambdas do."""
    pairs: list[tuple[Any, Any]] = [
        (lambda t: F.relu(t), lambda t: F.gelu(t)),
        (with_slope(None), with_slope(True)),
        (with_slope(None), with_slope(None, F.elu)),
        (lambda t, f=F.relu: f(t), lambda t, f=F.silu: f(t)),
    ]
    for one, other in pairs:
        plan = enorm.trace(Acting(one))
        enorm.balance_(Acting(one), plan)
        with pytest.raises(ValueError, match="another model"):
            enorm.balance_(Acting(other), plan)
    for make in (counting, recursive):
        model = Acting(make())
        plan = enorm.trace(model)
        model(torch.zeros(2, 3))
        enorm.balance_(model, plan)
        enorm.balance_(Acting(make()), plan)


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


def test_hooks_of_all_modules_are_refused() -> None:
    handle = register_module_forward_hook(lambda module, inputs, output: output)
    try:
        with pytest.raises(enorm.UnsupportedModel, match="forward hooks of all modules"):
            enorm.trace(chain())
    finally:
        handle.remove()


def tanh_of_tensors(module: nn.Module, inputs: Any, output: Any) -> Any:
    """What a hook does to real values only."""
    return torch.tanh(output) if isinstance(output, Tensor) else None


def sigmoid_of_tensors(module: nn.Module, inputs: Any) -> Any:
    """The same of inputs."""
    return torch.sigmoid(inputs[0]) if isinstance(inputs[0], Tensor) else None


@pytest.mark.parametrize("before", [False, True], ids=["hook", "pre-hook"])
@pytest.mark.parametrize("weighted", [False, True], ids=["activation", "layers"])
def test_hooks_on_containers_are_walls(weighted: bool, before: bool) -> None:
    """They see no values while tracing, so that what they do then tells nothing."""
    torch.manual_seed(0)
    inner = nn.Sequential(nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 6))
    block = inner if weighted else nn.Sequential(nn.ReLU())
    tail = nn.Sequential(nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 6))
    model = nn.Sequential(nn.Linear(6, 6), block, tail).double()
    if before:
        block.register_forward_pre_hook(sigmoid_of_tensors)
    else:
        block.register_forward_hook(tanh_of_tensors)
    plan = enorm.trace(model)
    assert groups(plan) == [(["2.0"], ["2.2"], 6)]
    hooked = ("1 (Sequential)", "forward hooks may change what passes")
    assert [(skip.where, skip.reason) for skip in plan.skipped] == [hooked]
    x = torch.randn(5, 6, dtype=torch.float64)
    kept = {name: value.clone() for name, value in block.state_dict().items()}
    expected = model(x)
    enorm.balance_(model, plan, c=1.3)
    torch.testing.assert_close(model(x), expected, rtol=1e-12, atol=1e-12)
    assert all(torch.equal(value, kept[name]) for name, value in block.state_dict().items())


class Decoding(nn.Module):
    """Reads a layer that is none of its own."""

    def __init__(self, layer: nn.Linear, kind: str) -> None:
        super().__init__()
        self.others, self.kind = [layer], kind

    def forward(self, x: Tensor) -> Tensor:
        """By its weight, as that of another layer, or as it is."""
        (layer,) = self.others
        if self.kind == "transposed":
            return F.linear(x, layer.weight.t())
        if self.kind == "weight":
            return F.linear(x, layer.weight)
        out: Tensor = layer(x)
        if self.kind == "then fails" and out.sum() > 0:
            return out
        return out


@pytest.mark.parametrize("kind", ["transposed", "weight", "layer", "then fails"])
def test_what_a_module_with_hooks_reads_is_seen(kind: str) -> None:
    """A hook hides what it makes of the outputs, not what the code around it reads."""
    model: Any = nn.Sequential(
        *(nn.Linear(3, 3), nn.ReLU(), nn.Linear(3, 3), nn.ReLU(), nn.Linear(3, 3), nn.Sigmoid())
    )
    model.append(Decoding(model[2], kind))
    if kind != "then fails":
        assert groups(enorm.trace(model)) == []
    model[-1].register_forward_hook(lambda *_: None)
    assert groups(enorm.trace(model)) == []
    assert_never_wrong(model, torch.randn(5, 3))


def test_what_a_module_with_hooks_draws_is_no_matter() -> None:
    """Nothing of what it does is followed."""
    inner = Drawing(random.Random(0), lambda own: own.random() + random.random())
    model = nn.Sequential(nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 6), nn.ReLU(), inner)
    with pytest.raises(enorm.UnsupportedModel, match="draws from"):
        enorm.trace(model)
    inner.register_forward_hook(lambda *_: None)
    random.seed(0)
    expected = random.random()
    random.seed(0)
    assert groups(enorm.trace(model)) == [(["0"], ["2"], 6)]
    assert random.random() == expected
    assert inner.settings["generator"].random() == random.Random(0).random()


class OwnCall(nn.Sequential):
    """What it does is not in its forward."""

    def __call__(self, x: Tensor) -> Tensor:
        """As described."""
        return torch.tanh(super().__call__(x))


class OwnCallImpl(nn.Sequential):
    """The same, one step later."""

    def _call_impl(self, x: Tensor) -> Tensor:
        return torch.tanh(self.forward(x))


def with_method(model: nn.Module, name: str, code: Callable[..., Any]) -> nn.Module:
    """An instance with a method that its class does not have."""
    setattr(model, name, types.MethodType(code, model))
    return model


def replaced_forward() -> nn.Module:
    """As notebooks patch a model."""
    return with_method(chain(), "forward", lambda m, x: m[2](torch.tanh(m[0](x))))


def replaced_call() -> nn.Module:
    """What ``__call__`` calls."""
    return with_method(chain(), "_call_impl", lambda m, x: m[2](torch.tanh(m[0](x))))


def wrapped_forward() -> nn.Module:
    """As autocast wraps it, but by code that may do anything with the output."""
    model = chain()
    inner = type(model).forward

    @functools.wraps(inner)
    def forward(m: nn.Sequential, x: Tensor) -> Tensor:
        result: Tensor = torch.tanh(inner(m, x))
        return result

    return with_method(model, "forward", forward)


UNSEEN: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "forward": (replaced_forward, "its forward was replaced on the instance"),
    "forward, wrapped": (wrapped_forward, "its forward was replaced on the instance"),
    "call": (replaced_call, "its _call_impl was replaced on the instance"),
    "class": (lambda: OwnCall(*chain()), "its class OwnCall overrides __call__"),
    "class's call": (lambda: OwnCallImpl(*chain()), "its class OwnCallImpl overrides _call_impl"),
}


@pytest.mark.parametrize("name", UNSEEN)
def test_a_root_that_runs_other_code_than_its_classs_forward_is_refused(name: str) -> None:
    make, reason = UNSEEN[name]
    model = make()
    with pytest.raises(enorm.UnsupportedModel, match=f"{reason}, and tracing sees only") as caught:
        enorm.trace(model)
    assert "enorm.plan_from_layers(model, [names of layers])" in str(caught.value)
    with pytest.raises(enorm.UnsupportedModel, match=reason):
        enorm.ENorm(model)
    verified = enorm.verify(model, model, torch.randn(5, 6))
    assert reason in (verified.reason or "")
    # Inside of another model the code is seen as it runs.
    assert_never_wrong(nn.Sequential(model, nn.ReLU(), nn.Linear(6, 6)), torch.randn(5, 6))


def test_what_tracing_sees_of_a_root_is_no_reason() -> None:
    """Other methods of an instance, and the class that fx makes for a recorded graph."""
    model = with_method(chain(), "train", lambda m, mode=True: nn.Module.train(m, mode))
    assert len(enorm.trace(model).groups) == 1
    assert len(enorm.trace(torch.fx.symbolic_trace(chain())).groups) == 1


@pytest.mark.parametrize("precision", ["no", "bf16"])
def test_mixed_precision_of_accelerate_hides_nothing(precision: str) -> None:
    """It puts autocast, and a cast of the output, around the class's forward."""
    accelerate = pytest.importorskip("accelerate")
    model = accelerate.Accelerator(mixed_precision=precision, cpu=True).prepare(chain())
    assert ("forward" in vars(model)) == (precision == "bf16")
    assert len(enorm.trace(model).groups) == 1
    accelerate.state.AcceleratorState._reset_state(True)


DRAWS: dict[str, tuple[Callable[[], float], str]] = {
    "random": (random.random, "Python's random"),
    "numpy": (lambda: float(np.random.rand()), "numpy.random"),  # noqa: NPY002
    "torch": (lambda: torch.rand(()).item(), "torch's generator"),
    "two": (
        lambda: random.random() * np.random.rand(),  # noqa: NPY002
        "Python's random and numpy.random",
    ),
}


@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
@pytest.mark.parametrize("name", DRAWS)
def test_draws_that_the_code_branches_on_are_refused(name: str, training: bool) -> None:
    """One recording shows one of the ways; the generators go on as if nobody had drawn."""
    draw, source = DRAWS[name]

    def code(m: Written, x: Tensor) -> object:
        h = m.a(x)
        return m.b(torch.sigmoid(h) if m.training == training and draw() < 0.5 else F.relu(h))

    model = Written(code)
    mode = "train" if training else "eval"
    random.seed(0)
    np.random.seed(0)  # noqa: NPY002
    torch.manual_seed(0)
    expected = [make() for make, _ in DRAWS.values()]
    random.seed(0)
    np.random.seed(0)  # noqa: NPY002
    torch.manual_seed(0)
    with pytest.raises(
        enorm.UnsupportedModel,
        match=rf"in {mode} mode its forward code draws from {source}, so .* "
        r"enorm\.plan_from_layers\(model, \[names of layers\]\)$",
    ):
        enorm.trace(model)
    assert [make() for make, _ in DRAWS.values()] == expected
    assert len(enorm.plan_from_layers(model, ["a", "b"]).groups) == 1


class Drawing(Written):
    """Leaves a layer out now and then, by a generator of its own."""

    def __init__(self, generator: Any, draw: Callable[[Any], float]) -> None:
        super().__init__(lambda m, x: None)
        self.settings = {"generator": generator}
        self.draw = draw

    def forward(self, x: Tensor) -> object:
        """As LayerDrop does."""
        h = F.relu(self.a(x))
        if not (self.training and self.draw(self.settings["generator"]) < 0.2):
            h = F.relu(self.b(h))
        return self.c(h)


OWN: dict[str, tuple[Callable[[], Any], Callable[[Any], float]]] = {
    "Random": (lambda: random.Random(0), lambda own: own.random()),
    "Generator": (lambda: np.random.default_rng(0), lambda own: own.random()),
    "RandomState": (lambda: np.random.RandomState(0), lambda own: own.rand()),
    "torch": (
        lambda: torch.Generator().manual_seed(0),
        lambda own: torch.rand((), generator=own).item(),
    ),
}


@pytest.mark.parametrize("kind", OWN)
def test_draws_from_generators_that_the_model_holds_are_refused(kind: str) -> None:
    make, draw = OWN[kind]
    model, held = Drawing(make(), draw), Box()
    name = "Generator" if kind == "torch" else kind
    with pytest.raises(
        enorm.UnsupportedModel,
        match=f"in train mode its forward code draws from a {name} that it holds",
    ):
        enorm.trace(model)
    assert draw(model.settings["generator"]) == draw(make())
    # One level down, in an object.
    generator = make()
    held.value = generator
    model = Drawing(held, lambda box: draw(box.value))
    with pytest.raises(enorm.UnsupportedModel, match=f"draws from a {name} that it holds"):
        enorm.trace(model)
    assert draw(generator) == draw(make())


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_draws_on_a_gpu_are_refused() -> None:
    def code(m: Written, x: Tensor) -> object:
        h = m.a(x)
        return m.b(F.relu(h) if torch.rand((), device="cuda").item() < 0.5 else torch.sigmoid(h))

    torch.cuda.init()
    with pytest.raises(enorm.UnsupportedModel, match="draws from CUDA's generator"):
        enorm.trace(Written(code))


class Meter:
    """Averages, as a metric does."""

    total: Any = 0.0
    count = 0

    def __init__(self) -> None:
        self.history: list[Any] = []

    def update(self, value: Any) -> None:
        """One more."""
        self.total = self.total + value
        self.history.append(value)
        self.count += 1


def test_objects_that_a_model_holds_are_left_as_they_were() -> None:
    """Values of a recording in them would break every later call."""

    def metered(m: Keeping, x: Tensor) -> object:
        m.seen[0].update(x.abs().mean())
        return m.b(F.relu(m.a(x)))

    def cached(m: Keeping, x: Tensor) -> object:
        if not hasattr(m.seen[0], "mask"):
            m.seen[0].mask = torch.ones_like(x)
        return m.b(F.relu(m.a(x * m.seen[0].mask)))

    for code in (metered, cached):
        model = Keeping(code)
        model.seen.append(Meter())
        assert groups(enorm.trace(model)) == [(["a"], ["b"], 6)]
        assert vars(model.seen[0]) == {"history": []}
        assert isinstance(model(torch.zeros(2, 6)), Tensor)


def test_values_of_another_call_are_refused() -> None:
    def code(m: Written, x: Tensor) -> object:
        BOX.value = x.mean() if BOX.value is None else BOX.value + x.mean()
        return m.b(F.relu(m.a(x)))

    try:
        with pytest.raises(enorm.UnsupportedModel, match="that it has kept from another call"):
            enorm.trace(Written(code))
    finally:
        BOX.value = None


@pytest.mark.parametrize("alias", [False, True], ids=["a copy", "another name"])
def test_a_product_in_place_changes_every_name(alias: bool) -> None:
    """``h *= y`` is no ``h = h * y`` for whoever reads the same tensor later."""

    def code(m: Written, x: Tensor) -> object:
        gate = torch.sigmoid(m.c(x))
        h = gate if alias else gate.clone()
        h *= F.relu(m.a(x))
        return m.b(h) + m.c(gate)

    model = Written(code)
    assert groups(enorm.trace(model)) == []
    assert_never_wrong(model, torch.randn(5, 6))


def test_operators_in_place() -> None:
    """Where both sides carry the same scales, or one none, nothing is lost."""

    def code(m: Written, x: Tensor) -> object:
        h = F.relu(m.a(x))
        size = x.size(0)
        size *= 2
        size //= 2
        h *= 2.0
        h /= size
        h += F.relu(h)
        h -= 0.5 * h
        return m.b(h)

    model = Written(code)
    assert groups(enorm.trace(model)) == [(["a"], ["b"], 6)]
    assert groups(enorm.trace(model, torch.zeros(3, 6))) == [(["a"], ["b"], 6)]
    assert_never_wrong(model, torch.randn(5, 6))
    x = torch.randn(5, 6)
    assert enorm.error_bound(model, x).shape == (5, 6)


def test_backward_hooks_of_the_old_kind() -> None:
    """PyTorch looks for a tensor in what the module returns, and would not find one."""
    model = nn.Sequential(nn.Sequential(nn.Linear(3, 3), nn.ReLU()), nn.Linear(3, 3))
    model[0].register_backward_hook(lambda *_: None)
    assert groups(enorm.trace(model)) == [(["0.0"], ["1"], 3)]
    assert len(model[0]._backward_hooks) == 1


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


@pytest.mark.parametrize("example", [False, True])
def test_values_whose_data_are_replaced_are_walls(example: bool) -> None:
    """``x.data = y`` is an assignment to fx, and no operation."""

    def replaced(m: Written, x: Tensor) -> object:
        h = F.relu(m.a(x))
        h.data = torch.tanh(m.c(x))
        return m.b(h)

    def leaked(m: Written, x: Tensor) -> object:
        h, seen = F.relu(m.a(x)), torch.zeros_like(x)
        seen.data = h
        return m.b(h) + torch.sigmoid(seen).sum(1, keepdim=True)

    for code in (replaced, leaked):
        plan = enorm.trace(Written(code), torch.zeros(3, 6) if example else None)
        assert plan.groups == ()
        assert plan.skipped[0].reason == "replaces the data of a value"


def test_casts_are_held_to_the_weights_in_front() -> None:
    """That the head is in half precision says nothing of the range of the body's units."""

    def code(m: Written, x: Tensor) -> object:
        return m.b(F.relu(m.a(x)).half())

    model = Written(code)
    model.b.half()
    assert enorm.trace(model).groups == ()
    assert groups(enorm.trace(Written(code).half())) == [(["a"], ["b"], 6)]
    # Nor does a layer elsewhere in single precision; of two in front the wider counts.
    model.a.half()
    assert groups(enorm.trace(model)) == [(["a"], ["b"], 6)]
    model.code = lambda m, x: m.b(F.relu(m.a(x.half()) + m.c(x)).half())
    assert enorm.trace(model).groups == ()


def test_tensors_arrays_and_gradients_are_left_as_they_were() -> None:
    def code(m: Keeping, x: Tensor) -> object:
        m.seen[0].add_(1)
        m.seen[1][:] *= 0.5
        m.seen[2].add_(next(m.a.parameters()).abs().sum())
        m.zero_grad(set_to_none=False)
        m.a.requires_grad_(not m.training)
        return m.b(F.relu(m.a(x)))

    model = Keeping(code)
    model.seen += [torch.zeros(2), np.ones(2), torch.zeros(())]
    model.b.weight.grad = torch.ones(6, 6)
    held = list(model.seen)
    enorm.trace(model)
    assert all(one is other for one, other in zip(model.seen, held, strict=True))
    assert torch.equal(held[0], torch.zeros(2))
    assert (held[1] == 1).all()
    assert held[2] == 0
    assert not held[2].requires_grad
    assert torch.equal(model.b.weight.grad, torch.ones(6, 6))
    assert all(one.requires_grad for one in model.parameters())


def test_an_input_with_a_default_has_to_be_given() -> None:
    class Optional(Written):
        def forward(self, x: Any = None) -> object:
            return super().forward(x)

    for name, code in (
        (r"a \(Linear\)", lambda m, x: m.b(F.relu(m.a(x)))),
        (r"bn \(LayerNorm\)", lambda m, x: m.b(m.bn(x))),
    ):
        with pytest.raises(enorm.UnsupportedModel, match=f"{name} is called without a value"):
            enorm.trace(Optional(code, norm=nn.LayerNorm(6)))
    model = Optional(lambda m, x: m.b(F.relu(m.a(x))))
    assert groups(enorm.trace(model, torch.zeros(2, 6))) == [(["a"], ["b"], 6)]


def test_a_batch_of_one_is_told_as_such() -> None:
    model = Written(lambda m, x: m.b(F.relu(m.bn(m.a(x)))), norm=nn.BatchNorm1d(6))
    with pytest.raises(enorm.UnsupportedModel, match="give a batch of two or more"):
        enorm.trace(model, torch.zeros(1, 6))


class Scaled(nn.Module):
    """A residual branch with a learned factor, as ReZero's."""

    def __init__(self, factor: Tensor) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3, padding=1)
        self.second = nn.Conv2d(8, 8, 3, padding=1)
        self.last = nn.Linear(8, 2)
        self.factor = nn.Parameter(factor)

    def forward(self, x: Tensor) -> Tensor:
        """Two blocks and a mean over positions."""
        h = F.relu(self.first(x))
        h = h + self.factor * self.second(h)
        out: Tensor = self.last(h.mean((2, 3)))
        return out


@pytest.mark.parametrize("shape", [(), (1,), (8, 1, 1)])
def test_learned_factors_keep_the_number_of_axes(shape: tuple[int, ...]) -> None:
    model = Scaled(torch.full(shape, 0.3))
    assert groups(enorm.trace(model)) == [(["first", "second"], ["second", "last"], 8)]
    assert_never_wrong(model, torch.randn(2, 3, 4, 4))


def test_what_a_weight_is_like_may_be_read() -> None:
    """Its device, dtype and shape change with no scale."""

    def placed(m: Written, x: Tensor) -> object:
        return m.b(F.relu(m.a(x.to(m.a.weight.device).view(-1, m.a.weight.shape[1]))))

    assert groups(enorm.trace(Written(placed))) == [(["a"], ["b"], 6)]
    summed = Written(lambda m, x: m.b(F.relu(m.a(x))) + m.a.weight.sum() * m.a.weight.shape[1])
    assert enorm.trace(summed).groups == ()


def test_a_gate_expanded_like_the_units() -> None:
    """Of them it reads the shape, as squeeze-and-excitation does."""

    def gated(m: Written, x: Tensor) -> object:
        h = F.relu(m.a(x))
        return m.b(h * torch.sigmoid(m.c(x)[:, :1]).expand_as(h))

    model = Written(gated)
    assert groups(enorm.trace(model)) == [(["a"], ["b"], 6)]
    assert_never_wrong(model, torch.randn(3, 6))

    def seen(m: Written, x: Tensor) -> object:
        h = F.relu(m.a(x))
        return m.b(h) + torch.sigmoid(h.expand_as(m.c(x)))

    assert enorm.trace(Written(seen)).groups == ()
