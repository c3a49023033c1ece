"""What may be rescaled is found however a chain is written, and everything else is a wall."""

from __future__ import annotations

import copy
import functools
import inspect
import pickle
import warnings
from collections.abc import Callable

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import StochasticDepth, stochastic_depth

import enorm
from enorm._memory import sharing


class Functional(nn.Module):
    """Registration order is not call order; functional and module forms mixed."""

    def __init__(self) -> None:
        super().__init__()
        self.last = nn.Linear(4 * 9, 5)
        self.second = nn.Conv2d(6, 4, 3, padding=1)
        self.first = nn.Conv2d(3, 6, 3, bias=False)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        """Three weighted layers, pooling and a view."""
        x = F.max_pool2d(self.relu(self.first(x)), 2)
        x = F.dropout(F.leaky_relu(self.second(x), 0.1), 0.5, self.training)
        x = F.adaptive_avg_pool2d(x, 3)
        result: Tensor = self.last(x.view(x.size(0), -1))
        return result


class Written(nn.Module):
    """Linear layers with whatever forward code a test gives."""

    def __init__(
        self,
        forward: Callable[[Written, Tensor], object],
        width: int = 6,
        norm: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.bn = norm or nn.Identity()
        self.a = nn.Linear(6, width)
        self.b = nn.Linear(width, 6)
        self.c = nn.Linear(6, 6)
        self.d = nn.Linear(12, 6)
        self.code = forward

    def forward(self, x: Tensor) -> object:
        """The given code."""
        return self.code(self, x)


class OwnLinear(nn.Linear):
    """What it does with its weight is its own affair."""

    def forward(self, x: Tensor) -> Tensor:
        """The other way around."""
        return F.linear(x, self.weight.t(), self.bias)


class TwoInputs(nn.Module):
    """Their sum through a layer."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(5, 5)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """As described."""
        result: Tensor = self.fc(x + y)
        return result


class First(nn.Module):
    """The first of several values."""

    def forward(self, x: tuple[Tensor, ...]) -> Tensor:
        """As described."""
        return x[0]


def groups(plan: enorm.Plan) -> list[tuple[list[str], list[str], int]]:
    """Producers' and consumers' module names, and size."""
    return [
        ([p.module for p in g.producers], [c.module for c in g.consumers], g.size)
        for g in plan.groups
    ]


def assert_never_wrong(model: nn.Module, inputs: Tensor) -> None:
    """Whatever the plan is, rescaling by it keeps a float64 network's function."""
    model = copy.deepcopy(model).double().eval()
    before = copy.deepcopy(model)
    plan = enorm.trace(model)
    if plan.groups:
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for layer in plan.layers:
                # Uneven units, so that a scale in the wrong place would show.
                weight = model.get_parameter(layer.weight)
                rows = torch.rand(len(weight), generator=generator, dtype=torch.float64) + 0.1
                factor = rows.view(-1, *[1] * (weight.dim() - 1))
                weight.mul_(factor)
                before.get_parameter(layer.weight).mul_(factor)
        enorm.balance_(model, plan)
    expected, found = before(inputs.double()), model(inputs.double())
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)


def reasons(plan: enorm.Plan) -> list[str]:
    return [skip.reason for skip in plan.skipped]


def test_sequential_with_biases() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 2))
    plan = enorm.trace(model)
    assert groups(plan) == [(["0"], ["2"], 4), (["2"], ["4"], 5)]
    assert plan.groups[0].producers[0].bias == "0.bias"
    assert plan.skipped == ()
    assert [layer.depth for layer in plan.layers] == [1, 2, 3]
    assert plan.depth == 3
    assert "multiplied by d" in str(plan)


def test_functional_forward_in_call_order() -> None:
    model = Functional()
    plan = enorm.trace(model)
    assert groups(plan) == [(["first"], ["second"], 6), (["second"], ["last"], 4)]
    assert [consumer.block for group in plan.groups for consumer in group.consumers] == [1, 9]
    assert groups(enorm.trace(model, torch.zeros(2, 3, 12, 12))) == groups(plan)
    assert_never_wrong(model, torch.randn(2, 3, 12, 12))


FLATTENS: dict[str, Callable[[Tensor], Tensor]] = {
    "torch.flatten": lambda x: torch.flatten(x, 1),
    "method": lambda x: x.flatten(1),
    "keyword": lambda x: x.flatten(start_dim=1),
    "view size": lambda x: x.view(x.size(0), -1),
    "view size dim": lambda x: x.view(x.size(dim=0), -1),
    "view tuple": lambda x: x.view((x.size(0), -1)),
    "reshape shape": lambda x: x.reshape(x.shape[0], -1),
    "torch.reshape": lambda x: torch.reshape(x, (x.shape[0], -1)),
}


class Flattening(nn.Module):
    """A convolution, a flatten, a Linear."""

    def __init__(self, flatten: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 3, 3)
        self.fc = nn.Linear(3 * 16, 4)
        self.flatten = flatten

    def forward(self, x: Tensor) -> Tensor:
        """As described."""
        result: Tensor = self.fc(self.flatten(F.relu(self.conv(x))))
        return result


@pytest.mark.parametrize("name", FLATTENS)
def test_every_way_to_flatten(name: str) -> None:
    model = Flattening(FLATTENS[name])
    plan = enorm.trace(model)
    assert groups(plan) == [(["conv"], ["fc"], 3)]
    assert plan.groups[0].consumers[0].block == 16
    assert_never_wrong(model, torch.randn(2, 2, 6, 6))


def test_a_shape_that_must_be_seen_is_believed_once_it_is_seen() -> None:
    """``view(-1, 48)`` keeps the batch only for inputs of the right size."""
    model = Flattening(lambda x: x.view(-1, 48))
    assert enorm.trace(model).groups == ()
    assert "reshapes" in enorm.trace(model).skipped[0].reason
    assert len(enorm.trace(model, torch.zeros(2, 2, 6, 6)).groups) == 1


@pytest.mark.parametrize(
    ("convolution", "norm", "pool", "axes"),
    [
        (nn.Conv1d, nn.BatchNorm1d, nn.AvgPool1d, 1),
        (nn.Conv2d, nn.BatchNorm2d, nn.MaxPool2d, 2),
        (nn.Conv3d, nn.BatchNorm3d, nn.AdaptiveMaxPool3d, 3),
    ],
)
def test_convolutions_of_all_dimensions(
    convolution: type[nn.Conv2d], norm: type[nn.BatchNorm2d], pool: type[nn.MaxPool2d], axes: int
) -> None:
    model = nn.Sequential(
        convolution(2, 3, 3, padding=1, padding_mode="circular"),
        norm(3),
        nn.ReLU(),
        nn.Dropout2d() if axes == 2 else nn.Dropout(),
        pool(2),
        convolution(3, 4, 2, stride=2, dilation=1),
        nn.LeakyReLU(0.2),
        nn.Flatten(),
        nn.Linear(4, 2),
    )
    plan = enorm.trace(model)
    inputs = torch.randn(2, 2, *[4] * axes)
    assert groups(plan) == [(["1"], ["5"], 3), (["5"], ["8"], 4)]
    assert groups(plan.under("ignore")) == [(["0"], ["5"], 3), (["5"], ["8"], 4)]
    if axes == 3:
        model[4] = nn.AdaptiveMaxPool3d(2)
    assert_never_wrong(model, inputs)


def test_batchnorm_rules() -> None:
    """Affine scales γ and β, or nothing where there are none; ignore sees through."""

    def chain(affine: bool) -> nn.Sequential:
        return nn.Sequential(
            nn.Linear(3, 4), nn.BatchNorm1d(4, affine=affine), nn.ReLU(), nn.Linear(4, 2)
        )

    plan = enorm.trace(chain(True))
    assert groups(plan) == [(["1"], ["3"], 4)]
    assert plan.groups[0].producers[0].bias == "1.bias"
    assert [layer.depth for layer in plan.layers] == [1, 1, 2]
    assert groups(plan.under("ignore")) == [(["0"], ["3"], 4)]
    bare = enorm.trace(chain(False))
    assert bare.groups == ()
    assert "affine" in bare.skipped[0].reason
    assert groups(bare.under("ignore")) == [(["0"], ["3"], 4)]


def test_plans_know_each_other_under_both_rules() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 2))
    plan = enorm.trace(model)
    other = plan.under("ignore")
    assert plan.under("affine") is plan
    assert other.batchnorm == "ignore"
    assert other.under("affine") is plan
    assert other.under("ignore") is other


def test_batchnorm_in_front_of_the_first_layer() -> None:
    """Its shape has to be known; then it is the producer of the first layer's columns."""
    model = nn.Sequential(nn.BatchNorm1d(3), nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    assert groups(enorm.trace(model)) == [(["1"], ["3"], 4)]
    plan = enorm.trace(model, torch.zeros(5, 3))
    assert groups(plan) == [(["0"], ["1"], 3), (["1"], ["3"], 4)]


WALLS: dict[str, tuple[Callable[[], nn.Module], str, str]] = {
    "GELU": (
        lambda: nn.Sequential(nn.Linear(6, 6), nn.GELU(), nn.Linear(6, 6)),
        "1 (GELU)",
        "not known to be positively homogeneous",
    ),
    "ReLU6": (
        lambda: nn.Sequential(nn.Linear(6, 6), nn.ReLU6(), nn.Linear(6, 6)),
        "1 (ReLU6)",
        "not known to be positively homogeneous",
    ),
    "functional sigmoid": (
        lambda: Written(lambda m, x: m.b(torch.sigmoid(m.a(x)))),
        "sigmoid in forward",
        "not known to be positively homogeneous",
    ),
    "LayerNorm": (
        lambda: nn.Sequential(
            nn.Linear(6, 6), nn.LayerNorm(6, elementwise_affine=False), nn.ReLU(), nn.Linear(6, 6)
        ),
        "1 (LayerNorm)",
        "LayerNorm without affine parameters cannot carry a scale",
    ),
    "input added": (
        lambda: Written(lambda m, x: m.b(F.relu(m.a(x)) + x)),
        "add in forward",
        "adds a value that carries no scale",
    ),
    "product with itself": (
        lambda: Written(lambda m, x: m.c((h := F.relu(m.a(x))) * h)),
        "mul in forward",
        "multiplies activations by each other",
    ),
    "constant added": (
        lambda: Written(lambda m, x: m.b(F.relu(m.a(x)) + 1)),
        "add in forward",
        "adds a constant",
    ),
    "called twice": (
        lambda: Written(lambda m, x: m.c(F.relu(m.a(F.relu(m.a(x)))))),
        "a (Linear)",
        "called 2 times",
    ),
    "also an output": (
        lambda: Written(lambda m, x: (m.b(h := F.relu(m.a(x))), h)),
        "a",
        "its activations are also an output of the model",
    ),
    "weight read": (
        lambda: Written(lambda m, x: m.b(F.relu(m.a(x))) + m.a.weight.sum()),
        "a (Linear)",
        "the forward code also reads its parameters directly",
    ),
    "pooled features": (
        lambda: Written(lambda m, x: m.b(F.max_pool1d(F.relu(m.a(x)), 1))),
        "max_pool1d in forward",
        "pools over hidden units",
    ),
    "other axis": (
        lambda: nn.Sequential(nn.Conv1d(6, 6, 1), nn.ReLU(), nn.Linear(6, 6)),
        "2 (Linear)",
        "reads the activations along another axis than their units",
    ),
    "transposed": (
        lambda: Written(lambda m, x: m.b(F.relu(m.a(x)).T)),
        "getattr in forward",
        "reads attribute 'T' of the activations",
    ),
    "recurrent": (
        lambda: nn.Sequential(nn.LSTM(6, 6), First(), nn.Linear(6, 6)),
        "0 (LSTM)",
        "weights of this kind of module are not rescaled",
    ),
    "lazy": (
        lambda: nn.Sequential(nn.Linear(6, 6), nn.ReLU(), nn.LazyLinear(6)),
        "2 (LazyLinear)",
        "its parameters have no shape before the first forward",
    ),
    "own subclass": (
        lambda: nn.Sequential(OwnLinear(6, 6), nn.ReLU(), OwnLinear(6, 6)),
        "0.weight",
        "read by the forward code itself, not by a Linear or convolution module",
    ),
    "indices": (
        lambda: nn.Sequential(
            *(nn.Conv1d(6, 6, 1), nn.MaxPool1d(1, return_indices=True), First()),
            nn.Conv1d(6, 6, 1),
        ),
        "1 (MaxPool1d)",
        "returns indices beside the activations",
    ),
}


@pytest.mark.parametrize("name", WALLS)
def test_walls_are_listed_with_their_reason(name: str) -> None:
    """And ``strict`` raises with the same words."""
    make, where, reason = WALLS[name]
    model = make()
    plan = enorm.trace(model)
    assert plan.groups == ()
    found = [(skip.where, skip.reason) for skip in plan.skipped]
    assert (where, reason) in found
    assert where in str(plan)
    with pytest.raises(enorm.UnsupportedModel, match=r".+: .+"):
        enorm.trace(model, strict=True)


def test_what_follows_the_last_layer_is_no_wall() -> None:
    """There is no weight behind a softmax at the output; one read beside a layer is a wall."""
    layers = (nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4))
    plan = enorm.trace(nn.Sequential(*layers, nn.LogSoftmax(1)), strict=True)
    assert groups(plan) == [(["0"], ["2"], 4)]
    assert plan.skipped == ()
    side = Written(lambda m, x: (m.b(h := F.relu(m.a(x))), torch.sigmoid(h)))
    plan = enorm.trace(side)
    assert plan.groups == ()
    assert plan.skipped[0].where == "sigmoid in forward"


def test_groups_stand_on_both_sides_of_a_wall() -> None:
    model = nn.Sequential(
        *(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4), nn.GELU()),
        *(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4)),
    )
    plan = enorm.trace(model)
    assert groups(plan) == [(["0"], ["2"], 4), (["4"], ["6"], 4)]
    assert_never_wrong(model, torch.randn(3, 4))


def test_two_readers_share_one_group() -> None:
    """A hidden layer with two heads has two consumers."""
    model = Written(lambda m, x: m.b(h := F.relu(m.a(x))) - m.c(h))
    assert groups(enorm.trace(model)) == [(["a"], ["b", "c"], 6)]
    assert_never_wrong(model, torch.randn(3, 6))


def tied_data(model: nn.Sequential) -> None:
    """The usual way to write a tied autoencoder."""
    model.get_parameter("2.weight").data = model.get_parameter("0.weight").data.t()


def tied_parameter(model: nn.Sequential) -> None:
    """The same with a parameter of its own."""
    model[2].weight = nn.Parameter(model.get_parameter("0.weight").detach().t())


def seen_by_a_buffer(model: nn.Sequential) -> None:
    """A second name for the same numbers."""
    model.register_buffer("copy", model.get_parameter("2.weight").detach()[0])


def expanded(model: nn.Sequential) -> None:
    """Entries that share memory with each other cannot be scaled apart."""
    model[2].weight = nn.Parameter(torch.randn(6, 1).expand(6, 6))


@pytest.mark.parametrize("share", [tied_data, tied_parameter, seen_by_a_buffer, expanded])
def test_shared_memory_is_a_wall(share: Callable[[nn.Sequential], None]) -> None:
    model = nn.Sequential(nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 6))
    share(model)
    plan = enorm.trace(model)
    assert plan.groups == ()
    assert "its parameters share memory with others" in reasons(plan)


def test_only_overlapping_views_share_memory() -> None:
    """Two halves of one tensor are apart; one entry in common ties both."""
    for second, tied in ((6, set()), (5, {"0.weight", "2.weight"})):
        memory = torch.randn(11)
        model = nn.Sequential(nn.Linear(3, 2, False), nn.ReLU(), nn.Linear(2, 2, False))
        model[0].weight = nn.Parameter(memory[:6].view(2, 3))
        model[2].weight = nn.Parameter(memory[second : second + 4].view(2, 2))
        assert set(sharing(model)) == tied
    # What has no memory and what has one entry come first and hide nothing behind them.
    model.insert(0, nn.Linear(1, 1, False))
    model[0].weight = nn.Parameter(torch.empty(0, 1))
    model.insert(1, nn.LazyLinear(2))
    model.insert(2, nn.Linear(1, 1))
    assert set(sharing(model)) == {"3.weight", "5.weight"}
    model.register_buffer("one", model.get_parameter("2.weight").detach())
    model.register_buffer("two", model.get_parameter("2.weight").detach())
    assert {"2.weight", "one", "two"} <= set(sharing(model))


def test_entries_of_one_parameter_that_share_memory() -> None:
    """Wherever in its memory the parameter begins, and however few entries are shared."""
    for offset in (0, 40):
        memory = torch.randn(60)
        model = nn.Sequential(nn.Linear(2, 2, bias=False))
        model[0].weight = nn.Parameter(memory.as_strided((2, 2), (1, 1), offset))
        assert set(sharing(model)) == {"0.weight"}
        model[0].weight = nn.Parameter(memory.as_strided((2, 2), (3, 1), offset))
        assert set(sharing(model)) == set()


ROUNDABOUT: dict[str, Callable[[Written, Tensor], Tensor]] = {
    "parameters()": lambda m, x: m.b(F.relu(m.a(x))) / next(m.b.parameters()).detach().norm(),
    "_parameters": lambda m, x: (
        m.b(F.relu(m.a(x))) * vars(m.a)["_parameters"]["weight"].detach().norm()
    ),
    "keyword": lambda m, x: m.b(F.relu(m.a(x))) * torch.sum(input=next(m.b.parameters())),
    "state_dict": lambda m, x: m.b(F.relu(m.a(x))) * m.state_dict()["a.weight"].norm(),
    "functional": lambda m, x: m.b(F.relu(m.a(x))) + F.linear(x, m.b.weight.abs()),
}


@pytest.mark.parametrize("name", ROUNDABOUT)
def test_parameters_read_around_the_modules_are_seen(name: str) -> None:
    plan = enorm.trace(Written(ROUNDABOUT[name]))
    assert plan.groups == ()
    assert "the forward code also reads its parameters directly" in reasons(plan)


def test_a_group_holds_in_train_and_in_eval_mode() -> None:
    """Whatever mode the model is in when it is traced."""

    def sigmoid_in_eval(m: Written, x: Tensor) -> Tensor:
        h = m.a(x)
        result: Tensor = m.b(F.relu(h) if m.training else torch.sigmoid(h))
        return result

    def skips_b_in_train(m: Written, x: Tensor) -> Tensor:
        h = F.relu(m.a(x))
        result: Tensor = m.c(h if m.training else F.relu(m.b(h)))
        return result

    def second_head_in_train(m: Written, x: Tensor) -> object:
        h = F.relu(m.a(x))
        return (m.b(h), m.c(h)) if m.training else m.b(h)

    for mode in (True, False):
        plan = enorm.trace(Written(sigmoid_in_eval).train(mode))
        assert plan.groups == ()
        plan = enorm.trace(Written(skips_b_in_train).train(mode))
        assert plan.groups == ()
        assert "reads other units in train mode than in eval mode" in reasons(plan)
        plan = enorm.trace(Written(second_head_in_train).train(mode))
        assert groups(plan) == [(["a"], ["b", "c"], 6)]


class Optional(nn.Module):
    """Its second argument decides what the first one meets."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(6, 6)
        self.b = nn.Linear(6, 6)

    def forward(self, x: Tensor, mask: Tensor | None = None, mode: str = "sigmoid") -> Tensor:
        """ReLU only with a mask and another mode."""
        h = self.a(x)
        if mask is None and mode == "sigmoid":
            return torch.sigmoid(self.b(torch.sigmoid(h)))
        result: Tensor = self.b(F.relu(h))
        return result


def test_arguments_keep_their_defaults() -> None:
    """Unless example inputs reach them."""
    assert enorm.trace(Optional()).groups == ()
    x = torch.zeros(2, 6)
    assert enorm.trace(Optional(), x).groups == ()
    assert groups(enorm.trace(Optional(), (x, x))) == [(["a"], ["b"], 6)]


def test_a_replaced_forward_and_a_used_part_are_walls() -> None:
    model = nn.Sequential(nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 6))
    model[1].forward = torch.tanh
    assert reasons(enorm.trace(model)) == ["its forward was replaced"]

    class Parts(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.TransformerEncoderLayer(6, 2, 6, batch_first=True)
            self.b = nn.Linear(6, 6)

        def forward(self, x: Tensor) -> Tensor:
            result: Tensor = self.layer(x) + self.b(F.relu(self.layer.linear1(x)))
            return result

    plan = enorm.trace(Parts())
    assert plan.groups == ()
    assert any("inside layer" in skip.reason for skip in plan.skipped)


def test_stochastic_depth_of_torchvision() -> None:
    """By module and by function: it multiplies a sample by 0 or by a constant."""
    model = Written(
        lambda m, x: m.c(
            stochastic_depth(F.relu(m.b(m.bn(F.relu(m.a(x))))), 0.5, "row", m.training)
        ),
        norm=StochasticDepth(0.5, "batch"),
    )
    assert groups(enorm.trace(model)) == [(["a"], ["b"], 6), (["b"], ["c"], 6)]


def test_reshape_by_keyword_is_a_wall() -> None:
    model = Written(
        lambda m, x: (
            m.b(h := F.relu(m.a(x))) + m.c(torch.reshape(shape=(h.size(0), -1), input=h).roll(1, 1))
        )
    )
    assert enorm.trace(model).groups == ()


def test_tracing_leaves_no_trace() -> None:
    """Counters, caches and modes are as they were."""

    class Counting(nn.Module):
        calls: Tensor

        def __init__(self) -> None:
            super().__init__()
            self.a = nn.Linear(6, 6)
            self.b = nn.Linear(6, 6)
            self.drop = nn.Dropout()
            self.register_buffer("calls", torch.zeros(()))
            self.cache: object = None
            self.seen: dict[str, list[object]] = {"inputs": []}
            self.last: dict[str, object] = {"input": None}

        def forward(self, x: Tensor) -> Tensor:
            self.calls += 1
            self.cache = x
            self.seen["inputs"].append(x)
            self.last["input"] = x
            for parameter in self.parameters():
                parameter.data.clamp_(-0.01, 0.01)
            self.a.bias.data = torch.zeros(6)
            result: Tensor = self.b(self.drop(F.relu(self.a(x))))
            return result

    model = Counting()
    model.drop.eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    places = {name: value.data_ptr() for name, value in model.state_dict().items()}
    enorm.trace(model)
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name])
        assert value.data_ptr() == places[name]
    assert model.cache is None
    assert model.seen == {"inputs": []}
    assert model.last == {"input": None}
    assert model.training
    assert not model.drop.training


def test_example_inputs_that_do_not_fit(capsys: pytest.CaptureFixture[str]) -> None:
    model = nn.Sequential(nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 6)).double()
    # Of a float32 example for a float64 model only the shape is taken.
    assert len(enorm.trace(model, torch.zeros(2, 6)).groups) == 1
    with pytest.raises(
        enorm.UnsupportedModel,
        match=r"^example_inputs of shape \(2, 5\) do not fit the model: .*reduction dim.*\.$",
    ):
        enorm.trace(model, torch.zeros(2, 5))
    with pytest.raises(
        enorm.UnsupportedModel, match=r"^example_inputs of shape \(2, 5\), \(3,\) do"
    ):
        enorm.trace(TwoInputs(), (torch.zeros(2, 5), torch.zeros(3)))
    assert capsys.readouterr() == ("", "")
    with pytest.raises(TypeError, match="tensor, a tuple of tensors or tensors by name, got list"):
        enorm.trace(model, [torch.zeros(2, 6)])
    with pytest.raises(TypeError, match="exclude must be a list of module names"):
        enorm.trace(model, exclude="2")
    with pytest.raises(TypeError, match="exclude must be a list of module names, got NoneType"):
        enorm.trace(model, exclude=None)  # type: ignore[arg-type]


def test_batchnorm_that_averages_over_all_batches() -> None:
    """How many there have been is a value, and no size needs it."""

    class Viewed(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.reshape(2, 16)

    model = nn.Sequential(
        *(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4, momentum=None), nn.ReLU(), Viewed()),
        nn.Linear(16, 2),
    )
    plan = enorm.trace(model, torch.zeros(2, 3, 2, 2))
    assert groups(plan) == [(["1"], ["4"], 4)]
    assert plan.skipped == ()
    assert model[1].momentum is None


def test_resizing_what_has_axes_nobody_has_counted() -> None:
    class Gated(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.out = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 2, 1)

        def forward(self, x: Tensor) -> Tensor:
            gate = x.mean((1, 2, 3), keepdim=True)
            result: Tensor = self.out(F.interpolate(self.conv(x) * gate, scale_factor=2))
            return result

    plan = enorm.trace(Gated())
    assert reasons(plan) == ["the number of axes is not known: pass example_inputs"]
    assert groups(enorm.trace(Gated(), torch.zeros(2, 3, 4, 4))) == [(["conv"], ["out"], 4)]


def test_quantized_layers_are_none_with_weights() -> None:
    with warnings.catch_warnings():
        # Newer versions of torch advise against it.
        warnings.simplefilter("ignore")
        model = torch.ao.quantization.quantize_dynamic(nn.Sequential(nn.Linear(3, 4), nn.ReLU()))
    with pytest.raises(ValueError, match="no layer has a weight of floating-point numbers"):
        enorm.balance_(model)


class Normalized(nn.Module):
    """A BatchNorm whose axis the example shows, behind whatever happens to the inputs."""

    def __init__(self, code: Callable[[Normalized, Tensor], Tensor]) -> None:
        super().__init__()
        self.bn = nn.BatchNorm1d(6)
        self.a = nn.Linear(6, 6)
        self.b = nn.Linear(6, 6)
        self.code = code

    def forward(self, x: Tensor) -> Tensor:
        """As described."""
        result: Tensor = self.b(F.relu(self.a(self.bn(self.code(self, x)))))
        return result


ON_ANY_DEVICE: dict[str, Callable[[Normalized, Tensor], Tensor]] = {
    "to the parameters": lambda m, x: x.to(next(m.parameters()).device),
    "to a name": lambda m, x: x.to("cpu"),
    "cpu": lambda m, x: x.cpu(),
    "cuda": lambda m, x: x.cuda(),
    "made by number": lambda m, x: x + torch.arange(x.shape[1], device="cpu"),
    "made without": lambda m, x: x + torch.arange(x.shape[1]),
}
BY_VALUE: dict[str, Callable[[Normalized, Tensor], Tensor]] = {
    "mask": lambda m, x: x[x[:, 0] > 0],
    "where": lambda m, x: torch.nonzero(x).float().tile(1, 3),
    "item": lambda m, x: x * x.max().item(),
}


@pytest.mark.parametrize("name", ON_ANY_DEVICE)
def test_example_inputs_fit_whatever_device_the_code_names(name: str) -> None:
    """None of it has values, on none of them."""
    plan = enorm.trace(Normalized(ON_ANY_DEVICE[name]), torch.zeros(2, 6))
    assert groups(plan) == [(["bn"], ["a"], 6), (["a"], ["b"], 6)]


@pytest.mark.parametrize("name", BY_VALUE)
def test_what_depends_on_values_has_no_shape(name: str) -> None:
    """The rest goes on, and guesses no number of axes."""
    model = Normalized(BY_VALUE[name])
    plan = enorm.trace(model, torch.zeros(2, 6))
    assert groups(plan) == [(["a"], ["b"], 6)]
    assert reasons(plan) == ["the shape of its input is not known, and example_inputs do not tell"]
    assert reasons(enorm.trace(model)) == [
        "the shape of its input is not known: pass example_inputs"
    ]
    with pytest.raises(enorm.UnsupportedModel, match=r"^example_inputs of shape \(2, 5\) do not"):
        enorm.trace(nn.Sequential(nn.Linear(6, 6), model), torch.zeros(2, 5))


def test_hooks_do_not_run_for_shapes() -> None:
    """They may keep what they see."""
    seen: list[object] = []
    model = nn.Sequential(nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 6))
    model[1].register_forward_hook(lambda module, inputs, output: seen.append(output))
    assert groups(enorm.trace(model, torch.zeros(2, 6))) == [(["2"], ["4"], 6)]
    assert seen == []


def test_synchronized_batchnorm_among_processes() -> None:
    """It refuses to run on another device than an accelerator."""
    model = nn.Sequential(
        nn.Conv2d(3, 4, 1), nn.SyncBatchNorm(4), nn.ReLU(), nn.Flatten(), nn.Linear(16, 2)
    )
    dist.init_process_group(
        "gloo", store=torch._C._distributed_c10d.HashStore(), rank=0, world_size=1
    )
    try:
        plan = enorm.trace(model, torch.zeros(5, 3, 2, 2))
    finally:
        dist.destroy_process_group()
    assert groups(plan) == [(["1"], ["4"], 4)]


def test_a_plan_does_not_outlive_what_it_was_proved_for() -> None:
    def chain() -> nn.Sequential:
        return nn.Sequential(nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 6), nn.Linear(6, 6))

    model = chain()
    plan = enorm.trace(model)
    model[3].weight = model[2].weight
    with pytest.raises(ValueError, match="another model"):
        enorm.balance_(model, plan)
    model = chain()
    plan = enorm.trace(model)
    model[1].register_forward_hook(lambda *_: None)
    with pytest.raises(ValueError, match="another model"):
        enorm.balance_(model, plan)
    for other_kind in (True, False):
        model = chain()
        plan = enorm.trace(model)
        if other_kind:
            model[1] = nn.Tanh()
        else:
            model[1].forward = torch.tanh
        with pytest.raises(ValueError, match="another model"):
            enorm.balance_(model, plan)
    enorm.trace(Written(forward_relu)).check(Written(forward_relu))
    with pytest.raises(ValueError, match="another model"):
        enorm.trace(Written(forward_relu)).check(Written(forward_gelu))


class Switched(nn.Module):
    """Attributes say what it does."""

    soft = False

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(6, 6)
        self.b = nn.Linear(6, 6)
        self.kind = "relu"
        self.act = functools.partial(F.leaky_relu, negative_slope=0.1)
        self.seen = 0
        self._cache = "nothing"

    def forward(self, x: Tensor) -> Tensor:
        """As described."""
        h = torch.sigmoid(self.a(x)) if self.soft else self.act(self.a(x))
        result: Tensor = self.b(torch.tanh(h) if self.kind == "tanh" else h)
        return result


SWITCHES: dict[str, Callable[[Switched], None]] = {
    "bool": lambda m: setattr(m, "soft", True),
    "str": lambda m: setattr(m, "kind", "tanh"),
    "partial's function": lambda m: setattr(m, "act", functools.partial(F.elu, alpha=0.1)),
    "partial's argument": lambda m: setattr(
        m, "act", functools.partial(F.leaky_relu, negative_slope=0.2)
    ),
    "partial's keyword": lambda m: setattr(m, "act", functools.partial(F.leaky_relu, inplace=True)),
}


@pytest.mark.parametrize("name", SWITCHES)
def test_a_plan_does_not_outlive_what_the_code_branches_on(name: str) -> None:
    model = Switched()
    plan = enorm.trace(model)
    assert len(plan.groups) == 1
    # What it counts and hides is its own affair, and so is a value that its class has as well.
    model.seen, model._cache, model.soft = 1, "something", False
    model.eval()
    plan.check(model)
    plan.check(copy.deepcopy(model))
    SWITCHES[name](model)
    with pytest.raises(ValueError, match="another model"):
        enorm.balance_(model, plan)


def forward_relu(m: Written, x: Tensor) -> object:
    """Homogeneous."""
    return m.b(F.relu(m.a(x)))


def forward_gelu(m: Written, x: Tensor) -> object:
    """Not."""
    return m.b(F.gelu(m.a(x)))


def test_wrappers_name_what_to_pass() -> None:
    model = nn.Sequential(nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 6))
    with pytest.raises(
        enorm.UnsupportedModel, match=r"^DataParallel wraps a model: pass model\.module$"
    ):
        enorm.trace(nn.DataParallel(model))
    with pytest.raises(
        enorm.UnsupportedModel,
        match=r"^this is a compiled model: pass the model that was compiled$",
    ):
        enorm.trace(torch.compile(model))  # type: ignore[arg-type]
    for thing, name in (("model", "str"), (F.relu, "function"), (nn.Linear, "type")):
        with pytest.raises(TypeError, match=rf"^model must be a torch\.nn\.Module, got {name}$"):
            enorm.trace(thing)  # type: ignore[arg-type]


def test_tied_weights_hooks_and_computed_weights_are_walls() -> None:
    tied = Written(lambda m, x: m.c(F.relu(m.b(F.relu(m.a(x))))))
    tied.b.weight = tied.a.weight
    assert enorm.trace(tied).groups == ()
    hooked = nn.Sequential(nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 6))
    hooked[1].register_forward_hook(lambda *_: None)
    assert reasons(enorm.trace(hooked)) == ["forward hooks may change what passes"]
    assert enorm.trace(hooked, exclude=["1"]).groups == ()
    computed = nn.Sequential(nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 6))
    nn.utils.parametrizations.weight_norm(computed[0])
    assert enorm.trace(computed).groups == ()


def mixed_weights(model: nn.Sequential) -> None:
    model[2].weight = nn.Parameter(torch.zeros(6, 6, dtype=torch.complex64))


def computed_weight(model: nn.Sequential) -> None:
    nn.utils.parametrizations.weight_norm(model[2])


def weight_without_shape(model: nn.Sequential) -> None:
    model[2].weight = nn.UninitializedParameter()


def weight_without_entries(model: nn.Sequential) -> None:
    model[2].weight = nn.Parameter(torch.empty(0, 6))


def no_weight(model: nn.Sequential) -> None:
    model[2].register_parameter("weight", None)


def no_weight_and_no_bias(model: nn.Sequential) -> None:
    model[2].register_parameter("weight", None)
    model[2].register_parameter("bias", None)


UNUSABLE: dict[Callable[[nn.Sequential], None], str] = {
    mixed_weights: "its parameters are torch.complex64, torch.float32, "
    "not float64, float32 or a half precision",
    computed_weight: "its weight is computed, not a parameter",
    weight_without_shape: "its parameters have no shape before the first forward",
    weight_without_entries: "it has no units",
    no_weight: "it has no weight",
    no_weight_and_no_bias: "it has no weight",
}


@pytest.mark.parametrize("change", UNUSABLE, ids=lambda change: change.__name__)
def test_layers_that_cannot_be_rescaled_say_why(change: Callable[[nn.Sequential], None]) -> None:
    """Word by word; the layer takes no group's scale, and what stands behind it does."""
    model = nn.Sequential(
        *(nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 6), nn.ReLU()),
        *(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 2)),
    )
    change(model)
    plan = enorm.trace(model)
    assert [(skip.where, skip.reason) for skip in plan.skipped if skip.where[0] == "2"] == [
        (f"2 ({type(model[2]).__name__})", UNUSABLE[change])
    ]
    assert groups(plan) == [(["4"], ["6"], 5)]
    assert [layer.weight for layer in plan.layers if layer.weight[0] == "2"] == (
        ["2.weight"] if change in (mixed_weights, weight_without_entries) else []
    )


SPARSE: dict[str, Callable[[Tensor], Tensor]] = {
    "COO": Tensor.to_sparse,
    "CSR": Tensor.to_sparse_csr,
}


@pytest.mark.parametrize("example", [False, True], ids=["no example", "example"])
@pytest.mark.parametrize("kind", SPARSE)
def test_sparse_tensors(kind: str, example: bool) -> None:
    """A buffer, such as a graph's edges, is what it is; a weight is a reason."""
    sparse = SPARSE[kind]

    def code(m: Written, x: Tensor) -> Tensor:
        h = m.b(F.relu(m.a(x)))
        result: Tensor = m.c(torch.sparse.mm(m.get_buffer("edges"), h))
        return result

    inputs = torch.randn(4, 6) if example else None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = Written(code)
        model.register_buffer("edges", sparse(torch.eye(4)))
        assert groups(enorm.trace(model, inputs)) == [(["a"], ["b"], 6)]
        assert enorm.balance_(model).converged
        chain = nn.Sequential(nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 6))
        chain[1].weight = nn.Parameter(sparse(torch.eye(6)))
        plan = enorm.trace(chain, inputs)
        assert groups(plan) == [(["2"], ["3"], 6)]
        assert [(skip.where, skip.reason) for skip in plan.skipped] == [
            ("1 (Linear)", "its parameters are sparse")
        ]
        assert enorm.balance_(chain, plan).converged


def test_sparse_values_share_memory_as_others_do() -> None:
    model = nn.Sequential(nn.Linear(4, 1), nn.ReLU(), nn.Linear(1, 2))
    values = model.get_parameter("0.weight").detach()[0]
    view = torch.sparse_coo_tensor(torch.arange(4)[None], values, (4,), check_invariants=True)
    model.register_buffer("view", view)
    assert reasons(enorm.trace(model)) == ["its parameters share memory with others"]


@pytest.mark.filterwarnings("ignore:`torch.jit.*` is deprecated")
@pytest.mark.parametrize("example", [False, True], ids=["no example", "example"])
def test_compiled_by_torch_jit(example: bool) -> None:
    """A wall inside of a model, and no model by itself."""
    inputs = torch.zeros(2, 6) if example else None
    block = nn.Sequential(nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 6))
    for part in (torch.jit.script(block), torch.jit.trace(block, torch.zeros(2, 6))):
        model = nn.Sequential(nn.Linear(6, 6), part, nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 6))
        plan = enorm.trace(model, inputs)
        assert groups(plan) == [(["2"], ["4"], 6)]
        assert reasons(plan) == ["torch.jit has compiled it, so that its code cannot be seen"]
        assert_equal_after(model, plan)
        with pytest.raises(
            enorm.UnsupportedModel, match=r"^this is a model that torch\.jit has compiled: pass the"
        ):
            enorm.trace(part)


def assert_equal_after(model: nn.Module, plan: enorm.Plan) -> None:
    """Rescaling by ``plan`` keeps a float32 network's function."""
    inputs = torch.randn(5, 6)
    before = model(inputs)
    enorm.balance_(model, plan, power_of_two=True)
    torch.testing.assert_close(model(inputs), before, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("dtype", "casts", "passes"),
    [
        (torch.float32, "float", True),
        (torch.float32, "half float", False),
        (torch.float32, "double float", True),
        (torch.float32, "bfloat16", False),
        (torch.float64, "float", False),
        (torch.float16, "half", True),
        (torch.float16, "bfloat16", False),
        (torch.bfloat16, "float bfloat16", True),
        (torch.bfloat16, "half", False),
    ],
)
def test_casts_that_hold_what_the_parameters_hold_are_passed(
    dtype: torch.dtype, casts: str, passes: bool
) -> None:
    """Others round, or overflow, where the model's own numbers would not."""

    def code(m: Written, x: Tensor) -> Tensor:
        h = F.relu(m.a(x))
        for name in casts.split():
            h = getattr(h, name)()
        result: Tensor = m.b(h)
        return result

    model = Written(code).to(dtype)
    assert groups(enorm.trace(model)) == ([(["a"], ["b"], 6)] if passes else [])
    if passes:
        assert len(enorm.trace(model, torch.zeros(2, 6)).groups) == 1


def test_casts_have_no_rounding_bound() -> None:
    model = Written(lambda m, x: m.b(F.relu(m.a(x)).double().float()))
    after = copy.deepcopy(model)
    assert enorm.balance_(after, enorm.trace(after)).converged
    verified = enorm.verify(model, after, torch.randn(5, 6))
    assert verified.ok
    assert verified.reason == "no rounding bound is known for double"


def test_what_happens_in_one_mode_only_counts() -> None:
    """A layer called twice, or its weight read, in train mode or in eval mode."""
    for training in (True, False):

        def twice(m: Written, x: Tensor, here: bool = training) -> object:
            h = F.relu(m.a(x))
            return m.c(F.relu(m.a(h)) if m.training == here else h)

        def read(m: Written, x: Tensor, here: bool = training) -> object:
            return m.b(F.relu(m.a(x))) * (m.a.weight.norm() if m.training == here else 1.0)

        assert "called 2 times" in reasons(enorm.trace(Written(twice)))
        directly = "the forward code also reads its parameters directly"
        assert reasons(enorm.trace(Written(read))) == [directly]


def test_a_layer_that_is_called_and_read_is_listed_once() -> None:
    """At any depth, and in whatever mode it is called."""

    class Outer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = Written(lambda m, x: m.b(F.relu(m.a(x))))

        def forward(self, x: Tensor) -> Tensor:
            result: Tensor = self.inner(x) + F.linear(x, self.inner.a.weight.abs())
            return result

    found = [(skip.where, skip.reason) for skip in enorm.trace(Outer()).skipped]
    assert found == [("inner.a (Linear)", "the forward code also reads its parameters directly")]


def test_messages_name_nested_parameters_and_list_every_reason() -> None:
    layer = nn.Linear(6, 6)
    model = nn.Sequential(nn.Sequential(layer), nn.ReLU(), nn.Linear(6, 6))
    stepper = enorm.ENorm(model)
    layer.weight = nn.Parameter(torch.zeros(6, 6))
    with pytest.raises(RuntimeError, match=r"^parameter '0\.0\.weight' was replaced after"):
        stepper.step()
    walls = nn.Sequential(nn.Linear(6, 6), nn.GELU(), nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 6))
    with pytest.raises(ValueError, match=r"1 \(GELU\): [^;]*; 3 \(Tanh\): [^;X]*$"):
        enorm.balance_(walls)


class Branching(nn.Module):
    """Asks for a value, in a function that its forward code calls."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(6, 6)

    def positive(self, x: Tensor) -> bool:
        """What tracing cannot know."""
        return bool(x.sum() > 0)

    def forward(self, x: Tensor) -> Tensor:
        """The line that counts is the one below, of the innermost forward code."""
        return self.a(x) if self.positive(x) else x


def test_control_flow_on_data_names_the_line() -> None:
    lines, start = inspect.getsourcelines(Branching.forward)
    for model in (Branching(), nn.Sequential(nn.Linear(6, 6), Branching())):
        with pytest.raises(enorm.UnsupportedModel) as raised:
            enorm.trace(model)
        place = f"{__file__}:{start + len(lines) - 1}"
        kind = type(model).__name__
        assert str(raised.value).startswith(
            f"{kind} cannot be traced at {place}: TraceError: symbolically traced variables"
        )

    # Code that is not called forward has no line to name.
    odd = type("Odd", (nn.Module,), {"forward": lambda self, x: x if x.sum() > 0 else -x})
    with pytest.raises(enorm.UnsupportedModel, match=r"^Odd cannot be traced: TraceError: "):
        enorm.trace(odd())


def test_example_inputs_are_taken_in_the_models_dtype() -> None:
    """A shape is all they are for; indices stay whole numbers, also in front of all parameters."""

    class Indexed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table = nn.Embedding(5, 6)
            self.bn = nn.BatchNorm1d(6)
            self.a = nn.Linear(6, 4)

        def forward(self, x: Tensor) -> Tensor:
            result: Tensor = self.a(F.relu(self.bn(self.table(x).transpose(1, 2)).flatten(1)))
            return result

    net = Indexed()
    net.a = nn.Linear(18, 4)
    found = enorm.trace(net.double(), torch.zeros(2, 3, dtype=torch.int64))
    assert len(found.groups) == 1
    chain = nn.Sequential(nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 6)).to(torch.bfloat16)
    assert len(enorm.trace(chain, torch.zeros(2, 6)).groups) == 1
    # Without parameters of its own a model takes the inputs as they are.
    assert enorm.trace(nn.Sequential(nn.Flatten(), nn.ReLU()), torch.zeros(2, 6)).groups == ()


def test_exclude_leaves_parameters_alone() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 2))
    plan = enorm.trace(model, exclude=["4"], strict=True)
    assert groups(plan) == [(["0"], ["2"], 4)]
    assert plan.skipped[0].reason == "excluded by the caller"
    last = model.get_parameter("4.weight").clone()
    enorm.balance_(model, plan)
    assert torch.equal(model.get_parameter("4.weight"), last)


def test_reused_activation_module_is_no_wall() -> None:
    relu = nn.ReLU()
    model = nn.Sequential(nn.Linear(3, 4), relu, nn.Linear(4, 5), relu, nn.Linear(5, 2))
    assert len(enorm.trace(model).groups) == 2


def test_plans_survive_copies_and_pickling() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    plan = enorm.trace(model)
    assert enorm.energy(plan) == enorm.energy(model)
    twin = copy.deepcopy(model)
    again = pickle.loads(pickle.dumps(plan))
    assert again == plan
    assert enorm.balance_(twin, again).converged
    with pytest.raises(ReferenceError, match="pass the model"):
        enorm.energy(again)
    other = nn.Sequential(nn.Linear(3, 4), nn.GELU(), nn.Linear(4, 2))
    with pytest.raises(ValueError, match="another model"):
        enorm.balance_(other, plan)


def test_code_that_moves_features_has_no_two_axes() -> None:
    """Nothing is known of how many it has, until an example shows it."""

    def joined(m: Written, x: Tensor) -> object:
        both = torch.cat([F.relu(m.a(x)), F.relu(m.c(x))], 1)
        return m.b(both.transpose(-1, -2).flatten(1))

    def deep(m: Written, x: Tensor) -> object:
        return m.b(F.relu(m.a(x)).transpose(-1, -2).flatten(1))

    for code, shape, width in ((joined, (5, 2, 6), 24), (deep, (5, 2, 2, 6), 24)):
        model = Written(code)
        model.b = nn.Linear(width, 6)
        plan = enorm.trace(model)
        assert plan.groups == ()
        assert "the number of axes is not known: pass example_inputs" in reasons(plan)
        producers = [(["a", "c"], ["b"], 6)] if code is joined else []
        assert groups(enorm.trace(model, torch.zeros(shape))) == producers
    model = Written(deep)
    model.b = nn.Linear(12, 6)
    seen = enorm.trace(model, torch.zeros(5, 2, 6))
    assert groups(seen) == [(["a"], ["b"], 6)]


def test_features_behind_a_wall_behind_a_convolution() -> None:
    """A wall does not take positions away; what a batch norm takes for features are they."""
    head = [nn.Linear(5, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 2)]
    long = nn.Sequential(nn.Conv1d(3, 6, 1), nn.GELU(), *head)
    assert groups(enorm.trace(long)) == []
    assert_never_wrong(long, torch.randn(7, 3, 5))
    short = nn.Sequential(nn.Conv1d(3, 1, 1), nn.GELU(), nn.Flatten(), *head)
    assert groups(enorm.trace(short)) == [(["4"], ["6"], 6)]
    assert_never_wrong(short, torch.randn(7, 3, 5))
