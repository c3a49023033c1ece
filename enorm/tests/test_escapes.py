"""What users say where tracing cannot see: operations they vouch for, and whole chains."""

from __future__ import annotations

import copy
import functools
import warnings
from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import enorm
from enorm import _homogeneous
from enorm.tests.test_trace import groups, reasons


class Blur(nn.Module):
    """A mean over pairs of positions, with a weight of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.kernel = nn.Parameter(torch.tensor([[[0.5, 0.5]]]))

    def forward(self, x: Tensor) -> Tensor:
        """As described."""
        blurred: Tensor = F.conv1d(x.flatten(0, 1)[:, None], self.kernel)
        apart: Tensor = blurred.unflatten(0, x.shape[:2])[:, :, 0]
        return apart


def halves(x: Tensor) -> Tensor:
    """Homogeneous, and opaque: it indexes."""
    return 0.5 * x[...]


class Calls(nn.Module):
    """Calls :func:`halves` by its global name."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(3, 4)
        self.b = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        """As described."""
        result: Tensor = self.b(halves(F.relu(self.a(x))))
        return result


class Branching(nn.Module):
    """Which way it goes depends on the data."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.bn = nn.BatchNorm2d(4)
        self.up = nn.ConvTranspose2d(4, 6, 2)
        self.fc = nn.Linear(6 * 25, 5)
        self.last = nn.Linear(5, 2)
        self.other = nn.Linear(5, 2)

    def forward(self, x: Tensor) -> Tensor:
        """As described."""
        h = F.relu(self.bn(self.conv(x)))
        h = F.relu(self.fc(F.relu(self.up(h)).flatten(1)))
        if h.sum() < 0:
            h = -h
        result: Tensor = self.last(h)
        return result


@pytest.fixture(autouse=True)
def _forget() -> Iterator[None]:
    kept = dict(_homogeneous._REGISTERED)
    yield
    _homogeneous._REGISTERED.clear()
    _homogeneous._REGISTERED.update(kept)


def kept(model: nn.Module, plan: enorm.Plan, inputs: Tensor) -> None:
    """Rescaling by ``plan`` changes weights, and not the function."""
    before = copy.deepcopy(model)
    result = enorm.balance_(model, plan)
    assert result.energy_after < result.energy_before
    torch.testing.assert_close(model(inputs), before(inputs), rtol=1e-10, atol=1e-12)


def test_a_registered_module_is_passed_and_left_alone() -> None:
    model = nn.Sequential(nn.Conv1d(3, 4, 1), Blur(), nn.Conv1d(4, 2, 1)).double()
    assert groups(enorm.trace(model)) == []
    enorm.register_homogeneous(Blur, positions=1)
    plan = enorm.trace(model)
    assert groups(plan) == [(["0"], ["2"], 4)]
    kernel = model.get_parameter("1.kernel").clone()
    kept(model, plan, torch.randn(5, 3, 7, dtype=torch.float64))
    assert torch.equal(model.get_parameter("1.kernel"), kernel)
    verified = enorm.verify(model, model, torch.randn(5, 3, 7).double())
    assert (verified.bound, verified.ok) == (None, True)


def test_a_registered_module_mixes_no_units() -> None:
    enorm.register_homogeneous(Blur, positions=1)
    model = nn.Sequential(nn.Linear(3, 4), Blur(), nn.Linear(3, 2))
    assert reasons(enorm.trace(model)) == ["pools over hidden units"]


def test_a_registered_function_is_passed() -> None:
    model = Calls().double()
    assert groups(enorm.trace(model)) == []
    assert enorm.register_homogeneous(halves) is halves
    plan = enorm.trace(model)
    assert groups(plan) == [(["a"], ["b"], 4)]
    kept(model, plan, torch.randn(5, 3, dtype=torch.float64))


def test_what_cannot_be_registered() -> None:
    with pytest.raises(TypeError, match="pass the class of a module, not the module"):
        enorm.register_homogeneous(3)
    with pytest.raises(TypeError, match=r"a subclass of nn.Module or a function"):
        enorm.register_homogeneous(int)
    with pytest.raises(ValueError, match="positions must be a whole number of at least 0, got -1"):
        enorm.register_homogeneous(halves, positions=-1)


class Doubling(torch.autograd.Function):
    """What a gradient of one's own is written as."""

    @staticmethod
    def forward(ctx: object, x: Tensor) -> Tensor:
        """Twice."""
        return 2 * x

    @staticmethod
    def backward(ctx: object, grad: Tensor) -> Tensor:
        """Twice."""
        return 2 * grad


class Callable:
    """A function that is an object."""

    def __call__(self, x: Tensor) -> Tensor:
        """Itself."""
        return x


def doubled(x: Tensor) -> Tensor:
    """Homogeneous."""
    return 2 * x


def scripted() -> object:
    """A function that ``torch.jit`` has compiled."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.jit.script(doubled)


@pytest.mark.parametrize(
    "make",
    [
        scripted,
        lambda: functools.partial(F.leaky_relu, negative_slope=0.2),
        Callable,
        lambda: Doubling.apply,
    ],
    ids=["scripted", "partial", "object", "autograd"],
)
def test_what_cannot_be_recorded_is_refused_at_once(make: Any) -> None:
    """And not by every later trace of whatever model."""
    with pytest.raises(TypeError, match=r"put it into a function of its own \(def\) and register"):
        enorm.register_homogeneous(make())
    assert len(enorm.trace(Calls()).skipped) == 1
    assert len(torch.fx.symbolic_trace(Calls()).graph.nodes) > 0


torchs_own = torch.sin
pythons_own = F.hardtanh


class CallsTorch(Calls):
    """Functions of torch by global names."""

    def forward(self, x: Tensor) -> Tensor:
        """As described."""
        result: Tensor = self.b(pythons_own(torchs_own(self.a(x))))
        return result


def test_registered_functions_of_torch_harm_no_later_trace() -> None:
    """``torch.fx`` would wrap them for good by names that are none."""
    enorm.register_homogeneous(torchs_own)
    enorm.register_homogeneous(pythons_own)
    assert len(enorm.trace(CallsTorch()).groups) == 1
    assert len(enorm.trace(Calls()).skipped) == 1
    assert len(torch.fx.symbolic_trace(Calls()).graph.nodes) > 0


def test_untraceable_code_names_its_line_and_the_escape() -> None:
    with pytest.raises(enorm.UnsupportedModel) as caught:
        enorm.trace(Branching())
    line = Branching.forward.__code__.co_firstlineno + 4
    assert f"{__file__}:{line}" in str(caught.value)
    assert "enorm.plan_from_layers(model, [names of layers])" in str(caught.value)


def test_named_layers() -> None:
    """Blocks, transposed weights and both rules for BatchNorm."""
    model = Branching().double().eval()
    plan = enorm.plan_from_layers(model, ["conv", "bn", "up", "fc", "last"])
    assert groups(plan) == [(["bn"], ["up"], 4), (["up"], ["fc"], 6), (["fc"], ["last"], 5)]
    assert [layer.depth for layer in plan.layers] == [1, 1, 2, 3, 4]
    assert plan.groups[1].consumers[0].block == 25
    ignoring = [(["conv"], ["up"], 4), (["up"], ["fc"], 6), (["fc"], ["last"], 5)]
    assert groups(plan.under("ignore")) == ignoring
    kept(model, plan, torch.randn(5, 3, 6, 6, dtype=torch.float64))


@pytest.mark.parametrize("norms", [[], [nn.BatchNorm1d(4)]], ids=["layers", "norms"])
def test_what_is_named_equals_what_is_traced(norms: list[nn.Module]) -> None:
    last = nn.Linear(8, 2)
    model = nn.Sequential(nn.Conv1d(3, 4, 1), *norms, nn.ReLU(), nn.Flatten(), last)
    chain = [name for name, one in model.named_children() if [*one.parameters()]]
    traced, named = enorm.trace(model), enorm.plan_from_layers(model, chain)
    assert (traced.groups, traced.layers) == (named.groups, named.layers)


class Same(nn.Conv1d):
    """A class of the user's own, as libraries have for padding."""


class Upwards(nn.ConvTranspose1d):
    """Likewise."""


def test_named_layers_of_classes_made_from_torchs() -> None:
    model = nn.Sequential(
        Same(3, 4, 1), nn.ReLU(), Upwards(4, 6, 1), nn.ReLU(), nn.Conv1d(6, 2, 1)
    ).double()
    plan = enorm.plan_from_layers(model, ["0", "2", "4"])
    assert groups(plan) == [(["0"], ["2"], 4), (["2"], ["4"], 6)]
    assert [layer.kind for layer in plan.layers] == ["Conv1d", "ConvTranspose1d", "Conv1d"]
    kept(model, plan, torch.randn(5, 3, 7, dtype=torch.float64))


class Adapted(nn.Linear):
    """Adds to what its own weight makes."""

    def __init__(self, size: int) -> None:
        super().__init__(size, size)
        self.down = nn.Linear(size, 1)


class Narrow(nn.Linear):
    """With one bias for all units."""

    def __init__(self, size: int) -> None:
        super().__init__(size, size)
        self.bias = nn.Parameter(torch.zeros(1))


@pytest.mark.parametrize(
    ("layer", "words"),
    [
        (Adapted(3), r"it has parameters beside weight and bias \(down\.weight\)"),
        (Narrow(3), r"its bias has shape \(1,\), not \(3,\)"),
        (nn.LazyLinear(3), "its parameters have no shape before the first forward"),
    ],
)
def test_named_layers_that_are_more_than_their_class(layer: nn.Module, words: str) -> None:
    model = nn.Sequential(layer, nn.Linear(3, 2))
    with pytest.raises(ValueError, match=f"'0' cannot be rescaled: {words}"):
        enorm.plan_from_layers(model, ["0", "1"])


def test_chains_end_together() -> None:
    model = nn.Sequential(*(nn.Linear(3, 3) for _ in range(5)))
    plan = enorm.plan_from_layers(model, ["0", "1", "2"], ["3", "4"])
    assert [layer.depth for layer in plan.layers] == [1, 2, 3, 2, 3]


@pytest.mark.parametrize(
    ("chain", "words"),
    [
        (["conv", "nothing"], "'nothing', which is no module"),
        (["conv", "conv"], "'conv' is named twice"),
        (["conv", "last"], "'last' reads 5 values, no multiple of the 4 units that 'conv' makes"),
        (["conv", ""], "'' is a Branching: name Linear, convolutions"),
    ],
)
def test_chains_that_cannot_be(chain: list[str], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        enorm.plan_from_layers(Branching(), chain)


def test_a_plan_is_no_optimizer_and_no_model_is_none() -> None:
    """What a caller may give by mistake is named."""
    model: Any = nn.Sequential(nn.Linear(3, 3), nn.ReLU(), nn.Linear(3, 3))
    optimizer: Any = torch.optim.SGD(model.parameters(), 0.1)
    words = r"plan must be one that enorm\.trace .*, got SGD; an optimizer is given as optimizer="
    with pytest.raises(TypeError, match=words):
        enorm.balance_(model, optimizer)
    with pytest.raises(TypeError, match=words):
        enorm.ENorm(model, plan=optimizer)
    nothing: Any = None
    with pytest.raises(TypeError, match=r"must be a torch\.nn\.Module, got NoneType"):
        enorm.plan_from_layers(nothing, ["0"])


@pytest.mark.parametrize(
    ("layers", "shape"),
    [
        ([nn.LazyLinear(6), nn.ReLU()], (4, 5)),
        ([nn.LazyConv2d(6, 3), nn.LazyBatchNorm2d(), nn.ReLU(), nn.Flatten()], (4, 2, 3, 3)),
    ],
)
def test_an_example_goes_through_lazy_layers(
    layers: list[nn.Module], shape: tuple[int, ...]
) -> None:
    """They stay lazy, and nothing in front of or behind them is taken for sizes that do not fit."""
    model = nn.Sequential(*layers, nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 2))
    plan = enorm.trace(model, torch.zeros(shape))
    first = len(layers)
    assert groups(plan) == [([f"{first}"], [f"{first + 2}"], 6)]
    assert isinstance(model[0].weight, nn.UninitializedParameter)
    assert model(torch.zeros(shape)).shape == (4, 2)


def test_a_chain_is_no_string() -> None:
    with pytest.raises(TypeError, match="a list of module names, got the string 'conv'"):
        enorm.plan_from_layers(Branching(), "conv")
    with pytest.raises(TypeError, match="for a set has no order"):
        enorm.plan_from_layers(Branching(), {"conv", "bn"})  # type: ignore[arg-type]


def test_tied_layers_are_refused() -> None:
    model = Branching()
    model.other.weight = model.last.weight
    with pytest.raises(ValueError, match="'last' cannot be rescaled: its parameters share memory"):
        enorm.plan_from_layers(model, ["fc", "last"])


@pytest.mark.parametrize("name", ["code", "graph", "meta"])
def test_names_that_torch_fx_keeps_for_itself(name: str) -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(3, 4), nn.Linear(4, 2)
            self.add_module(name, nn.ReLU())

        def forward(self, x: Tensor) -> Tensor:
            result: Tensor = self.b(self.get_submodule(name)(self.a(x)))
            return result

    words = f"^Model cannot be traced: torch.fx keeps the name '{name}' for itself: give that part"
    with pytest.raises(enorm.UnsupportedModel, match=words):
        enorm.trace(Model())
    # Inside another part it is no matter.
    assert len(enorm.trace(nn.Sequential(Model())).groups) == 1
