"""What user code brings along: properties, generators, wrappers, other meanings of names."""

from __future__ import annotations

import copy
import itertools
import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import prune
from torch.nn.utils.parametrizations import spectral_norm
from torch.nn.utils.parametrize import register_parametrization

import enorm


def mlp(*widths: int) -> nn.Sequential:
    """Linear layers with ReLU between them."""
    layers: list[nn.Module] = []
    for inputs, outputs in itertools.pairwise(widths):
        layers += [nn.Linear(inputs, outputs), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


class Noise(nn.Module):
    """A parametrization that draws."""

    def forward(self, weight: Tensor) -> Tensor:
        """As described."""
        return weight + torch.randn_like(weight)


class Shown(nn.Module):
    """A layer with a name for what cannot be had."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(5, 4)

    @property
    def weight(self) -> Any:
        """Raises."""
        raise RuntimeError("not now")

    def forward(self, x: Tensor) -> Tensor:
        """As described."""
        result: Tensor = self.inner(x)
        return result


@pytest.mark.parametrize("way", [enorm.trace, enorm.balance_, enorm.ENorm])
def test_parametrizations_are_not_computed(way: Callable[[nn.Module], Any]) -> None:
    """A spectral norm in train mode goes on with each computation; noise draws a number."""
    model = mlp(6, 5, 5, 4, 3, 3)
    spectral_norm(model[2])
    register_parametrization(model[8], "weight", Noise())
    before = {name: value.clone() for name, value in model.state_dict().items()}
    state = torch.get_rng_state()
    way(model)
    assert torch.equal(torch.get_rng_state(), state)
    buffers = [name for name, _ in model.named_buffers()]
    assert buffers
    for name in buffers:
        assert torch.equal(model.state_dict()[name], before[name]), name


def test_a_property_that_raises_is_not_asked() -> None:
    assert len(enorm.trace(nn.Sequential(nn.Linear(6, 5), nn.ReLU(), Shown())).groups) == 1


def test_names_may_come_from_a_generator() -> None:
    model = mlp(6, 5, 4, 3)
    assert enorm.trace(model, exclude=(name for name in ["2"])).groups == ()  # type: ignore[arg-type]
    assert enorm.trace(model, exclude=[""]).groups == (), "the model itself"
    chain = (name for name in ["0", "2", "4"])
    assert len(enorm.plan_from_layers(model, chain).groups) == 2  # type: ignore[arg-type]


class Two(nn.Module):
    """A network with two inputs."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(6, 5), nn.Linear(5, 3)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """As described."""
        result: Tensor = self.b(torch.relu(self.a(x + y)))
        return result


class ByName(Two):
    """One of the inputs has to be named."""

    def forward(self, x: Tensor, *, y: Tensor) -> Tensor:  # type: ignore[override]
        """As described."""
        return super().forward(x, y)


class Optional(Two):
    """One of the inputs need not be given."""

    def forward(self, x: Tensor, y: Tensor | None = None) -> Tensor:
        """As described."""
        return super().forward(x, x if y is None else y)


class Many(Two):
    """Any number of inputs."""

    def forward(self, *inputs: Tensor) -> Tensor:
        """As described."""
        return super().forward(inputs[0], inputs[-1])


class Open(Two):
    """Takes any other argument by name."""

    def forward(self, x: Tensor, **others: Tensor) -> Tensor:  # type: ignore[override]
        """As described."""
        return super().forward(x, x)


class Alone(Two):
    """Takes nothing."""

    def forward(self) -> Tensor:  # type: ignore[override]
        """As described."""
        return super().forward(X, X)


class Silent(Two):
    """Fails without a word."""

    def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
        """As described."""
        torch._assert(x.shape[1] == 7, "")
        return super().forward(x, x)


X = torch.zeros(2, 6)


@pytest.mark.parametrize(
    ("model", "given", "words"),
    [
        (Two(), X, r"^example_inputs has 1 tensor, and forward takes x, y$"),
        (Two(), (X, X, X), r"^example_inputs has 3 tensors, and forward takes x, y$"),
        (Optional(), (X, X, X), r"^example_inputs has 3 tensors, and forward takes x, y$"),
        (Open(), (X, X), r"^example_inputs has 2 tensors, and forward takes x$"),
        (Alone(), X, r"^example_inputs has 1 tensor, and forward takes none$"),
        (ByName(), X, r"^forward takes 'y' by its name only: give example_inputs by name, {'y':"),
        (ByName(), {"x": X}, r"^example_inputs lacks 'y', and forward takes x, y$"),
        (Two(), {"x": X, "z": X}, r"^example_inputs has 'z', and forward takes x, y$"),
        (Alone(), {"x": X}, r"^example_inputs has 'x', and forward takes none$"),
        (Silent(), X, r"^example_inputs of shape \(2, 6\) do not fit the model: AssertionError$"),
    ],
)
def test_another_number_of_example_inputs(model: nn.Module, given: Any, words: str) -> None:
    with pytest.raises(enorm.UnsupportedModel, match=words):
        enorm.trace(model, given)


def test_as_many_example_inputs_as_fit() -> None:
    for model, given in (
        (Two(), (X, X)),
        (Optional(), X),
        (Optional(), (X, X)),
        (Open(), X),
        (Open(), {"x": X, "z": X}),
        (Many(), (X, X)),
        (ByName(), {"y": X, "x": X}),
        (Optional(), {"y": X, "x": X}),
    ):
        assert len(enorm.trace(model, given).groups) == 1


class Loops(nn.Module):
    """``train`` is its training loop."""

    def __init__(self) -> None:
        super().__init__()
        self.net = mlp(6, 5, 4)

    def forward(self, x: Tensor) -> Tensor:
        """As described."""
        result: Tensor = self.net(x)
        return result

    def train(self, loader: Any, epochs: int = 1) -> Any:  # type: ignore[override]
        """As described."""
        for _ in loader:
            pass


def test_another_meaning_of_train() -> None:
    words = r"^Loops\.train\(False\) does not set the mode, but raises TypeError: 'bool' object"
    with pytest.raises(enorm.UnsupportedModel, match=words):
        enorm.trace(Loops())
    with pytest.raises(enorm.UnsupportedModel, match=words):
        enorm.error_bound(Loops(), X)


def test_a_slope_for_all_layers_is_no_wall() -> None:
    """It multiplies by a factor, and is not rescaled, however often it is called."""
    slope = nn.PReLU()
    layers = (nn.Linear(6, 5), slope, nn.Linear(5, 4), slope, nn.Linear(4, 3))
    model = nn.Sequential(*layers).double()
    x = torch.randn(7, 6, dtype=torch.float64)
    before = model(x)
    plan = enorm.trace(model)
    assert len(plan.groups) == 2
    assert plan.skipped == ()
    enorm.balance_(model, plan)
    torch.testing.assert_close(model(x), before, rtol=1e-12, atol=1e-13)


class Stacked(nn.Module):
    """Experts side by side."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk, self.head = nn.Linear(6, 8), nn.Linear(5, 2)
        self.experts = nn.ModuleList(nn.Linear(8, 5) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        """As described."""
        h = torch.relu(self.trunk(x))
        result: Tensor = self.head(torch.hypot(*[expert(h) for expert in self.experts]))
        return result


def pruned() -> nn.Sequential:
    """With a weight that is computed before each call."""
    model = mlp(6, 5, 4, 3)
    with torch.no_grad():
        prune.l1_unstructured(model[2], "weight", 0.4)
    return model


def hooked() -> nn.Sequential:
    """With an output that a hook changes."""
    model = mlp(6, 5, 4, 3)
    model[1].register_forward_hook(lambda module, inputs, output: output * 1e4)
    return model


def unhooked() -> nn.Sequential:
    """As pruning leaves it, without the hook."""
    model = pruned()
    model[2]._forward_pre_hooks.clear()
    return model


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (Stacked, "no rounding bound is known for hypot"),
        (pruned, r"no rounding bound is known for 2 \(Linear\), which has forward hooks"),
        (hooked, r"no rounding bound is known for 1 \(ReLU\), which has forward hooks"),
        (unhooked, r"no rounding bound is known for 2 \(Linear\) without its weight"),
    ],
)
def test_where_there_is_no_bound_verify_says_so(make: Callable[[], nn.Module], words: str) -> None:
    model = make()
    before = copy.deepcopy(model)
    with pytest.raises(enorm.UnsupportedModel, match=f"^{words}$"):
        enorm.error_bound(model, X)
    found = enorm.verify(before, model, X)
    assert found.ok
    assert re.fullmatch(words, found.reason or "")


class Wrapper(torch.optim.Optimizer):
    """Another optimizer inside, as accelerate has it."""

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self.optimizer = optimizer


def test_a_wrapped_optimizer_says_where_the_inner_one_is() -> None:
    model = mlp(6, 5, 4)
    wrapped = Wrapper(torch.optim.AdamW(model.parameters()))
    words = r"^optimizer is Wrapper, which wraps AdamW: pass optimizer\.optimizer$"
    with pytest.raises(TypeError, match=words):
        enorm.ENorm(model, wrapped)


def test_a_checkpoint_fits_whatever_else_the_model_holds() -> None:
    """A name of a folder, a flag, or the module its class is from decide nothing about scales."""

    class Named(nn.Sequential):
        folder = "monday"

    def state(model: nn.Module) -> dict[str, Any]:
        stepper = enorm.ENorm(model)
        stepper.step()
        return stepper.state_dict()

    model = mlp(6, 5, 4)
    other = Named(*mlp(6, 5, 4))
    stepper = enorm.ENorm(other)
    stepper.load_state_dict(state(model))
    assert stepper.state_dict()["calls"] == 1
    other.folder = "tuesday"
    enorm.ENorm(other).load_state_dict(stepper.state_dict())
    with pytest.raises(ValueError, match="other units of these parameters share their scales"):
        enorm.ENorm(mlp(6, 7, 4)).load_state_dict(state(model))


def test_nothing_else_rescales_preconditioned_biases() -> None:
    """They would not learn of it; when the ENorm is gone, nothing is in the way."""
    model = mlp(6, 5, 4)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    stepper = enorm.ENorm(model, optimizer, precondition_bias=True)
    before = [parameter.clone() for parameter in model.parameters()]
    words = "^an ENorm with precondition_bias=True rescales this model"
    with pytest.raises(RuntimeError, match=words):
        enorm.balance_(model)
    assert all(map(torch.equal, before, model.parameters()))
    enorm.balance_(mlp(6, 5, 4))
    del stepper
    assert enorm.balance_(model).converged


def test_a_second_preconditioner_is_refused_before_it_works() -> None:
    """As from a notebook's cell that runs twice; one that was not attached gives way."""
    model = mlp(6, 5, 4)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    stepper = enorm.ENorm(model, optimizer, precondition_bias=True)
    stepper = enorm.ENorm(model, optimizer, precondition_bias=True)
    handle = stepper.attach()
    with pytest.raises(RuntimeError, match="is rescaled by another ENorm attached"):
        enorm.ENorm(model, optimizer, precondition_bias=True)
    handle.remove()
    enorm.ENorm(model, optimizer, precondition_bias=True).attach()
