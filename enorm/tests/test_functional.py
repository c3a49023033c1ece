"""Layers that a model's own classes call as functions are the layers of torch's classes."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import enorm


class OwnLinear(nn.Linear):
    """As many libraries have one, for how it begins."""


class OwnConv(nn.Conv2d):
    """Its forward code is torch's, padding by wrapping around included."""


class OwnTransposed(nn.Module):
    """Not even a subclass; all options by name."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(6, 2, 3))
        self.bias = nn.Parameter(torch.randn(4))

    def forward(self, x: Tensor) -> Tensor:
        """The line that is recorded."""
        return F.conv_transpose1d(x, weight=self.weight, bias=self.bias, stride=2, groups=2)


class NormThenRelu(nn.BatchNorm2d):
    """Normalization and activation in one, with its activation inside, as timm has it."""

    def __init__(self, features: int) -> None:
        super().__init__(features)
        self.act = nn.PReLU(features)

    def forward(self, x: Tensor) -> Tensor:
        """The line that is recorded."""
        torch._assert(x.ndim == 4, "images only")
        if self.training:
            assert self.num_batches_tracked is not None
            self.num_batches_tracked.add_(1)
        x = F.batch_norm(
            x,
            self.running_mean,
            self.running_var,
            self.weight,
            self.bias,
            self.training,
            0.1,
            self.eps,
        )
        out: Tensor = self.act(x)
        return out


class ChannelsNorm(nn.LayerNorm):
    """Normalizes the channels of images."""

    def forward(self, x: Tensor) -> Tensor:
        """The line that is recorded."""
        x = x.permute(0, 2, 3, 1)
        x = F.layer_norm(x, self.normalized_shape, self.weight, self.bias, self.eps)
        return x.permute(0, 3, 1, 2)


class OwnGroupNorm(nn.GroupNorm):
    """The same by a function."""


class OwnRMSNorm(nn.RMSNorm):
    """The same by a function."""


class Block(nn.Module):
    """Weights of its own around a layer inside, which has one too."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(6, 5))
        self.register_parameter("bias", None)
        self.inner = OwnLinear(6, 6)

    def forward(self, x: Tensor) -> Tensor:
        """The line that is recorded."""
        out: Tensor = self.inner(F.relu(F.linear(x, self.weight)))
        return out


class UsesAnothers(nn.Module):
    """Reads the parameters of a layer that it never calls."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(6, 6)

    def forward(self, x: Tensor) -> Tensor:
        """The line that is recorded."""
        return F.linear(x, self.inner.weight, self.inner.bias)


# Each with its own classes, and with torch's where parameters have the same names.
TWINS: dict[str, tuple[Callable[[], nn.Module], Callable[[], nn.Module], tuple[int, ...]]] = {
    "Linear": (
        lambda: nn.Sequential(OwnLinear(5, 6), nn.ReLU(), OwnLinear(6, 6), nn.ReLU()).append(
            OwnLinear(6, 3, bias=False)
        ),
        lambda: nn.Sequential(
            *(nn.Linear(5, 6), nn.ReLU(), nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 3, bias=False))
        ),
        (8, 5),
    ),
    "convolutions": (
        lambda: nn.Sequential(
            *(OwnConv(3, 6, 3, padding=1, padding_mode="circular"), nn.ReLU()),
            *(OwnConv(6, 4, 3, stride=2, groups=2), nn.ReLU(), nn.Flatten(), OwnLinear(36, 3)),
        ),
        lambda: nn.Sequential(
            *(nn.Conv2d(3, 6, 3, padding=1, padding_mode="circular"), nn.ReLU()),
            *(nn.Conv2d(6, 4, 3, stride=2, groups=2), nn.ReLU(), nn.Flatten(), nn.Linear(36, 3)),
        ),
        (8, 3, 8, 8),
    ),
    "transposed": (
        lambda: nn.Sequential(nn.Conv1d(3, 6, 1), nn.ReLU(), OwnTransposed(), nn.Conv1d(4, 2, 1)),
        lambda: nn.Sequential(
            *(nn.Conv1d(3, 6, 1), nn.ReLU()),
            *(nn.ConvTranspose1d(6, 4, 3, stride=2, groups=2), nn.Conv1d(4, 2, 1)),
        ),
        (8, 3, 5),
    ),
    "GroupNorm": (
        lambda: nn.Sequential(nn.Conv2d(3, 6, 3), OwnGroupNorm(2, 6), nn.Conv2d(6, 2, 1)),
        lambda: nn.Sequential(nn.Conv2d(3, 6, 3), nn.GroupNorm(2, 6), nn.Conv2d(6, 2, 1)),
        (8, 3, 5, 5),
    ),
    "RMSNorm": (
        lambda: nn.Sequential(nn.Linear(3, 6), OwnRMSNorm(6), nn.ReLU(), nn.Linear(6, 2)),
        lambda: nn.Sequential(nn.Linear(3, 6), nn.RMSNorm(6), nn.ReLU(), nn.Linear(6, 2)),
        (8, 3),
    ),
}


def uneven(make: Callable[[], nn.Module]) -> nn.Module:
    """In float64, eval mode; no two units alike."""
    torch.manual_seed(3)
    model = make().double().eval()
    with torch.no_grad():
        for value in model.parameters():
            value.copy_(torch.randn(value.shape) * torch.linspace(-1, 1, len(value)).exp()[0])
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                assert module.running_mean is not None
                assert module.running_var is not None
                module.running_mean.normal_()
                module.running_var.uniform_(0.5, 2)
    return model


def images(*shape: int) -> Tensor:
    generator = torch.Generator().manual_seed(4)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("name", TWINS)
def test_own_classes_are_rescaled_as_torchs(name: str) -> None:
    """The same groups, the same weights bit for bit, the same bound, and the function kept."""
    make, make_twin, shape = TWINS[name]
    model, twin, x = uneven(make), uneven(make_twin), images(*shape)
    twin.load_state_dict(model.state_dict())
    before = copy.deepcopy(model)
    ours, theirs = enorm.trace(model), enorm.trace(twin)
    assert ours.groups
    assert (ours.groups, ours.layers) == (theirs.groups, theirs.layers)
    enorm.balance_(model, ours)
    enorm.balance_(twin, theirs)
    for key, value in twin.state_dict().items():
        assert torch.equal(model.state_dict()[key], value)
    mine, its = (enorm.verify(before, one, x) for one in (model, twin))
    assert mine.ok
    assert mine.bound == its.bound


def test_layernorm_of_channels() -> None:
    """Axes are followed to where it looks for them, and back."""
    model = uneven(lambda: nn.Sequential(nn.Conv2d(3, 6, 3), ChannelsNorm(6), nn.Conv2d(6, 2, 1)))
    before, x = copy.deepcopy(model), images(8, 3, 5, 5)
    plan = enorm.trace(model)
    assert [group.producers[0].weight for group in plan.groups] == ["1.weight"]
    assert enorm.balance_(model, plan).energy_after < enorm.energy(before)
    torch.testing.assert_close(model(x), before(x), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("training", [False, True])
def test_batchnorm_by_its_function(training: bool) -> None:
    """Its affine parameters carry the scale; tracing counts no batch."""
    model = uneven(
        lambda: nn.Sequential(nn.Conv2d(3, 6, 3), NormThenRelu(6), nn.Conv2d(6, 2, 1))
    ).train(training)
    before, x = copy.deepcopy(model), images(8, 3, 5, 5)
    plan = enorm.trace(model)
    assert model.get_buffer("1.num_batches_tracked") == 0
    assert [(group.producers[0].weight, group.size) for group in plan.groups] == [("1.weight", 6)]
    assert plan.skipped == ()
    enorm.balance_(model, plan)
    moved = {
        name
        for name, value in model.named_parameters()
        if not torch.equal(value, before.get_parameter(name))
    }
    assert moved == {"1.weight", "1.bias", "2.weight"}
    torch.testing.assert_close(model(x), before(x), rtol=1e-12, atol=1e-12)
    assert enorm.verify(before, model, x, training=training).bound is not None
    ignored = plan.under("ignore").groups
    assert [group.producers[0].weight for group in ignored] == ["0.weight"]


def test_batchnorm_by_its_function_in_any_number_of_positions() -> None:
    """Channels are the second axis whatever the class is called."""

    class Anything(NormThenRelu):
        def _check_input_dim(self, input: Tensor) -> None:
            pass

        def forward(self, x: Tensor) -> Tensor:
            return F.batch_norm(x, None, None, self.weight, self.bias, training=True)

    model = nn.Sequential(nn.Conv3d(3, 4, 1), Anything(4), nn.Conv3d(4, 2, 1)).double()
    before, x = copy.deepcopy(model), images(2, 3, 4, 5, 6)
    enorm.balance_(model)
    assert not torch.equal(model.get_parameter("1.weight"), before.get_parameter("1.weight"))
    torch.testing.assert_close(model(x), before(x))


@pytest.mark.parametrize("make", [Block, UsesAnothers])
def test_parameters_of_a_module_around_or_inside(make: Callable[[], nn.Module]) -> None:
    """Whose they are is told by their name, not by which code uses them."""
    units = 5 if make is Block else 6
    model = uneven(lambda: nn.Sequential(nn.Linear(5, units), make(), nn.ReLU(), nn.Linear(6, 2)))
    before, x = copy.deepcopy(model), images(8, 5)
    plan = enorm.trace(model)
    assert plan.skipped == ()
    assert len(plan.layers) == (4 if make is Block else 3)
    assert len(plan.groups) == len(plan.layers) - 1
    structure = {name: type(module) for name, module in model.named_modules()}
    enorm.balance_(model, plan)
    assert {name: type(module) for name, module in model.named_modules()} == structure
    torch.testing.assert_close(model(x), before(x), rtol=1e-12, atol=1e-12)
    assert enorm.verify(before, model, x).ok


class Computed(nn.Linear):
    """Its weight is centred first."""

    def forward(self, x: Tensor) -> Tensor:
        """The line that is recorded."""
        return F.linear(x, self.weight - self.weight.mean(), self.bias)


class Twice(nn.Linear):
    """Its weight is used again."""

    def forward(self, x: Tensor) -> Tensor:
        """The line that is recorded."""
        return F.linear(F.relu(F.linear(x, self.weight, self.bias)), self.weight, self.bias)


class Adds(nn.Linear):
    """Its bias is not given to the function."""

    def forward(self, x: Tensor) -> Tensor:
        """The line that is recorded."""
        return F.linear(x, self.weight) + self.bias


class Regularized(nn.Linear):
    """Its weight shows in the output otherwise."""

    def forward(self, x: Tensor) -> Tensor:
        """The line that is recorded."""
        return F.linear(x, self.weight, self.bias) + self.weight.sum()


class Depends(nn.Linear):
    """Its weight means other things in other modes."""

    def forward(self, x: Tensor) -> Tensor:
        """The line that is recorded."""
        if self.training:
            return F.linear(x, self.weight, self.bias)
        return F.rms_norm(x, (6,)) * self.weight[0]


class Keeps(nn.Linear):
    """Somebody may look at what it computed."""

    def forward(self, x: Tensor) -> Tensor:
        """The line that is recorded."""
        self.seen = F.linear(x, self.weight, self.bias)
        return self.seen


class Split(nn.Conv1d):
    """In as many groups as the input has positions."""

    def forward(self, x: Tensor) -> Tensor:
        """The line that is recorded."""
        return F.conv1d(x, self.weight, self.bias, groups=x.shape[2])


class PadsByInput(nn.Conv1d):
    """An option that is a value of the graph."""

    def forward(self, x: Tensor) -> Tensor:
        """The line that is recorded."""
        return F.conv1d(x, self.weight, self.bias, padding=x.shape[2] // 2)


class ModeGroups(nn.Module):
    """Two layouts of one weight."""

    def __init__(self, _: int, __: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(6, 6, 1))

    def forward(self, x: Tensor) -> Tensor:
        """The line that is recorded."""
        if self.training:
            return F.conv1d(torch.cat((x, x), 1), self.weight, groups=2)
        return F.conv1d(x, self.weight)


class Forgets(nn.Linear):
    """Gives its bias in train mode only."""

    def forward(self, x: Tensor) -> Tensor:
        """The line that is recorded."""
        return F.linear(x, self.weight, self.bias if self.training else None)


class CalledOrNot(nn.Module):
    """A layer that is called in train mode; in eval mode its weight is used."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.inner = nn.Linear(inputs, outputs)

    def forward(self, x: Tensor) -> Tensor:
        """The line that is recorded."""
        out: Tensor = self.inner(x) if self.training else F.linear(x, self.inner.weight)
        return out


class Mixed(nn.Module):
    """The weight of one layer and the bias of another."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.inner, self.other = nn.Linear(inputs, outputs), nn.Linear(inputs, outputs)

    def forward(self, x: Tensor) -> Tensor:
        """The line that is recorded."""
        return F.linear(x, self.inner.weight, self.other.bias)


class Borrows(nn.Module):
    """Computes with a weight that is not its own."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.inner, self.other = OwnLinear(inputs, outputs), OwnLinear(inputs, outputs)

    def forward(self, x: Tensor) -> Tensor:
        """The line that is recorded."""
        borrowed: dict[str, Tensor] = dict(self.other.named_parameters())
        out: Tensor = torch.func.functional_call(self.inner, borrowed, (x,))
        return out


@pytest.mark.parametrize(
    "kind", [Computed, Twice, Adds, Regularized, Depends, Keeps, Forgets, CalledOrNot, Mixed]
)
def test_other_uses_are_walls(kind: Callable[[int, int], nn.Module]) -> None:
    """Nothing in front of or behind it is rescaled, and the plan says where."""
    model = nn.Sequential(
        *(nn.Linear(6, 6), nn.ReLU(), kind(6, 6), nn.ReLU(), nn.Linear(6, 2)),
    ).double()
    plan = enorm.trace(model)
    before, x = copy.deepcopy(model), images(8, 6)
    names = {producer.module for group in plan.groups for producer in group.producers}
    assert not names & {"2", "2.inner"}
    assert plan.skipped
    if kind is Computed:
        reason = "its weight is not, as it stands, the parameter of one module"
        assert ("linear in 2.forward", reason) in {(one.where, one.reason) for one in plan.skipped}
    if plan.groups:
        enorm.balance_(model, plan)
    for training in (False, True):
        torch.testing.assert_close(model.train(training)(x), before.train(training)(x))


@pytest.mark.parametrize(
    "kind", [lambda *_: Split(6, 6, 1), lambda *_: PadsByInput(6, 6, 1), ModeGroups]
)
def test_options_that_cannot_be_told_are_walls(kind: Callable[[int, int], Any]) -> None:
    """Which columns read which units, and where, depends on them."""
    model = nn.Sequential(nn.Conv1d(6, 6, 1), nn.ReLU(), kind(6, 6), nn.ReLU(), nn.Conv1d(6, 2, 1))
    for example in (None, torch.randn(2, 6, 1)):
        plan = enorm.trace(model, example)
        assert plan.groups == ()
        reason = "an option of it, as groups, is computed from sizes"
        assert (reason in {one.reason for one in plan.skipped}) == (kind is not ModeGroups)


def test_models_that_are_layers_themselves() -> None:
    """They have nothing in front of them or behind, and layers without units say so."""
    assert enorm.trace(OwnLinear(6, 6)).groups == ()
    assert enorm.trace(Block()).groups == ()
    model = nn.Sequential(nn.Linear(5, 6), OwnLinear(6, 6), nn.Linear(6, 2))
    model[1].weight = nn.Parameter(torch.empty(0, 6))
    assert enorm.trace(model).groups == ()


def test_a_hook_on_a_subclass_is_a_wall() -> None:
    model = nn.Sequential(nn.Linear(5, 6), nn.ReLU(), OwnLinear(6, 6), nn.ReLU(), OwnLinear(6, 2))
    model[2].register_forward_hook(lambda module, args, output: output + 1)
    plan = enorm.trace(model)
    assert plan.groups == ()


def test_parameters_put_elsewhere_are_refused() -> None:
    """By what names they go while the forward code runs says nothing."""
    for kind in (OwnLinear, nn.Linear):
        model = nn.Sequential(nn.Linear(6, 6), nn.ReLU(), Borrows(6, 6))
        model[2].inner, model[2].other = kind(6, 6), kind(6, 6)
        with pytest.raises(enorm.UnsupportedModel, match=r"in the place of '2\.inner\.weight'"):
            enorm.trace(model)


class Around(nn.Module):
    """A module with a hook, whose weight and child are also used from outside."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = Block()
        self.inner.register_forward_hook(lambda *_: None)
        self.last = nn.Linear(6, 2)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """The lines that are recorded."""
        hidden = F.relu(F.linear(x, self.inner.weight))
        return self.inner(x), self.last(F.relu(self.inner.inner(hidden)))


def test_what_a_hooked_module_holds_is_left_as_it_is() -> None:
    """Also further inside."""
    outer = nn.Sequential(nn.Linear(6, 6), nn.ReLU(), nn.Sequential(Around(), nn.Identity()))
    for model, path in ((Around(), ""), (outer, "2.0.")):
        plan = enorm.trace(model)
        assert plan.groups == ()
        assert (f"{path}inner.inner (Linear)", f"also used inside {path}inner") in {
            (skip.where, skip.reason) for skip in plan.skipped
        }


class Inherits(nn.BatchNorm2d):
    """Only its name is new."""


class Extends(nn.BatchNorm2d):
    """Activates what its parent returns."""

    def forward(self, x: Tensor) -> Tensor:
        """The line that is recorded."""
        return F.relu(super().forward(x))


@pytest.mark.parametrize("kind", [Inherits, Extends])
def test_subclasses_of_batchnorm(kind: type[nn.BatchNorm2d]) -> None:
    """Torch's own code checks the input's axes, which a value of the graph does not tell."""
    model = uneven(lambda: nn.Sequential(nn.Conv2d(3, 6, 3), kind(6), nn.Conv2d(6, 2, 1)))
    before, x = copy.deepcopy(model), images(8, 3, 5, 5)
    assert len(enorm.trace(model).groups) == 1
    enorm.balance_(model)
    for training in (False, True):
        torch.testing.assert_close(model.train(training)(x), before.train(training)(x))
    with pytest.raises(ValueError, match="expected 4D input"):
        kind(6)(images(8, 6))


class Asserts(nn.BatchNorm2d):
    """The axes of its input are known even behind a wall."""

    def __init__(self, features: int, way: str) -> None:
        super().__init__(features)
        self.way = way

    def forward(self, x: Tensor) -> Tensor:
        """The lines that are recorded."""
        if self.way == "parent":
            return super().forward(x)
        if self.way == "dim":
            torch._assert(x.dim() == 4, "images only")
        elif self.way == "ndim":
            torch._assert(x.ndim == 4, "images only")
        elif self.way == "other value":
            torch._assert(F.relu(x).dim() == 4, "images only")
        elif self.way == "other relation":
            torch._assert(x.dim() >= 4, "images or films")
        return F.batch_norm(
            x, self.running_mean, self.running_var, self.weight, self.bias, self.training
        )


@pytest.mark.parametrize(
    ("way", "known"),
    [
        *(("parent", True), ("dim", True), ("ndim", True)),
        *(("other value", False), ("other relation", False), ("none", False)),
    ],
)
def test_axes_that_the_code_asserts(way: str, known: bool) -> None:
    """Without them, and without example inputs, nobody knows which axis is the second."""
    model = uneven(lambda: nn.Sequential(nn.Sigmoid(), Asserts(3, way), nn.Conv2d(3, 2, 1)))
    plan = enorm.trace(model)
    assert [group.size for group in plan.groups] == [3] * known
    assert ("the shape of its input is not known: pass example_inputs" in str(plan)) != known
    before, x = copy.deepcopy(model), images(4, 3, 5, 5)
    assert enorm.trace(model, x).groups
    enorm.balance_(model, enorm.trace(model, x))
    assert not torch.equal(model.get_parameter("1.weight"), before.get_parameter("1.weight"))
    torch.testing.assert_close(model(x), before(x))


def test_bounds_and_verification_change_nothing() -> None:
    """Not even a count of batches, whatever the forward code does with it."""
    model = nn.Sequential(nn.Conv2d(3, 6, 3), NormThenRelu(6), nn.Conv2d(6, 2, 1))
    kept, x = copy.deepcopy(model.state_dict()), torch.randn(8, 3, 5, 5)
    enorm.error_bound(model, x, training=True)
    enorm.verify(model, copy.deepcopy(model), x, training=True)
    for name, value in model.state_dict().items():
        assert torch.equal(value, kept[name]), name


@pytest.mark.parametrize("make", [lambda: OwnGroupNorm(2, 6), lambda: Asserts(6, "none")])
def test_axes_that_one_mode_does_not_tell(make: Callable[[], nn.Module]) -> None:
    """What a normalization makes has to be known in both."""

    class Ways(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norm = nn.Conv2d(3, 6, 1), make()
            self.head, self.other = nn.Conv2d(6, 2, 1), nn.Conv2d(6, 2, 1)

        def forward(self, x: Tensor) -> Tensor:
            hidden = self.conv(x)
            out: Tensor = (
                self.other(self.norm(torch.sigmoid(hidden)))
                if self.training
                else self.head(self.norm(hidden))
            )
            return out

    model = Ways()
    assert enorm.trace(model).groups == ()
    before, x = copy.deepcopy(model), torch.randn(2, 3, 4, 4)
    plan = enorm.trace(model, x)
    assert [one.module for one in plan.groups[0].consumers] == ["head", "other"]
    enorm.balance_(model, plan)
    for training in (False, True):
        torch.testing.assert_close(model.train(training)(x), before.train(training)(x))


class Position(nn.Module):
    """A layer that reads a parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.position = nn.Parameter(torch.randn(1, 5))
        self.stand_in_linear = nn.Linear(4, 6)
        self.place, self.last = OwnLinear(5, 6), OwnLinear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        """The line that is recorded."""
        hidden = self.stand_in_linear(x) + self.place(self.position)
        out: Tensor = self.last(F.relu(hidden))
        return out


def test_layers_of_parameters_and_odd_names() -> None:
    """Their bound is known, and a name that the graph might use stays the model's."""
    model = uneven(Position)
    before, x = copy.deepcopy(model), images(8, 4)
    plan = enorm.trace(model, x)
    assert len(plan.groups) == 1
    enorm.balance_(model, plan)
    found = enorm.verify(before, model, x)
    assert found.ok
    assert found.bound is not None


def test_bounds_name_the_models_own_modules() -> None:
    model = nn.Sequential(nn.Conv2d(3, 6, 3), OwnGroupNorm(2, 6))
    with pytest.raises(enorm.UnsupportedModel, match=r"for 1 \(GroupNorm\)"):
        enorm.error_bound(model, torch.randn(2, 3, 5, 5))
