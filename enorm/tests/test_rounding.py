"""The rounding bound, term by term, and where it is not known."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, cast

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import enorm
from enorm.tests.test_trace import Written
from properties.specs import Hidden, Net

U = 2.0**-24
TINY = 2.0**-149


def gamma(terms: int, rewrites: int = 1) -> float:
    return (terms + 2) * U / (1 - (terms + 2) * U) + (4 * rewrites + 2) * U


def bound(model: nn.Module, x: Tensor, rewrites: int = 1, training: bool = False) -> Tensor:
    """Without the last 1 %."""
    return enorm.error_bound(model, x, rewrites=rewrites, training=training) / 1.01


def two_layers(*between: nn.Module) -> tuple[Any, Tensor, Tensor, Tensor]:
    """Weights 2 and −3 on one input; what comes out of the first layer, and its bound."""
    model: Any = nn.Sequential(nn.Linear(1, 2), *between, nn.Linear(2, 1, bias=False))
    with torch.no_grad():
        model.get_parameter("0.weight").copy_(torch.tensor([[2.0], [-3.0]]))
        model.get_parameter("0.bias").copy_(torch.tensor([0.5, 0.25]))
        model[-1].weight.copy_(torch.tensor([[1.0, -4.0]]))
    x = torch.tensor([[1.5], [-0.5]])
    value = torch.tensor([[3.5, -4.25], [-0.5, 1.75]], dtype=torch.float64)
    magnitude = torch.tensor([[3.5, 4.75], [1.5, 1.75]], dtype=torch.float64)
    error = gamma(1) * magnitude + TINY * (x.abs().double() + 1 + 3)
    return model, x, value, error


def last(value: Tensor, error: Tensor, rewrites: int = 1) -> Tensor:
    """Of the layer with weights 1 and −4."""
    weight = torch.tensor([1.0, 4.0], dtype=torch.float64)
    magnitude = value.abs() + error
    rounding = gamma(2, rewrites) * magnitude @ weight + TINY * (magnitude.sum(1) + 4)
    return (error @ weight + rounding)[:, None]


def same(found: Tensor, expected: Tensor) -> None:
    assert found.dtype is torch.float64
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=0)


def test_layers_and_relu() -> None:
    model, x, value, error = two_layers(nn.ReLU())
    same(bound(model, x), last(value.relu(), error))
    assert enorm.error_bound(model, (x,)).equal(enorm.error_bound(model, x))


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (nn.Linear(3, 4), (2, 3)),
        (nn.Conv1d(3, 4, 3), (2, 3, 8)),
        (nn.ConvTranspose1d(3, 4, 2), (2, 3, 8)),
        (nn.BatchNorm1d(3), (2, 3)),
    ],
)
def test_a_model_that_is_one_layer(layer: nn.Module, shape: tuple[int, ...]) -> None:
    x = torch.ones(shape)
    found = bound(layer, x)
    assert bool((found > 0).all())
    same(found, bound(nn.Sequential(layer), x))


def test_more_rewrites_more_roundings() -> None:
    model = nn.Sequential(nn.Linear(2, 1, bias=False))
    nn.init.constant_(model.get_parameter("0.weight"), 2.0)
    x = torch.tensor([[3.0, -1.0]])
    for rewrites in (0, 1, 3):
        expected = gamma(2, rewrites) * 8 + TINY * 8
        same(bound(model, x, rewrites), torch.tensor([[expected]], dtype=torch.float64))


@pytest.mark.parametrize("slope", [0.1, -3.0])
def test_leaky_relu(slope: float) -> None:
    model, x, value, error = two_layers(nn.LeakyReLU(slope))
    steepest = max(1.0, abs(slope))
    error = steepest * (error + U * (value.abs() + error))
    same(bound(model, x), last(F.leaky_relu(value, slope), error))


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_other_dtypes_round_by_their_own_unit(dtype: torch.dtype) -> None:
    """Sums accumulate in float32 at least; a weight and a result are rounded to the dtype."""
    model = nn.Sequential(nn.Linear(1, 1, bias=False)).to(dtype)
    nn.init.constant_(model.get_parameter("0.weight"), 2.0)
    found = bound(model, torch.ones(1, 1, dtype=dtype)).item()
    u = {torch.float64: 2.0**-53, torch.bfloat16: 2.0**-8}[dtype]
    accumulate = min(u, U)
    assert found == pytest.approx((3 * accumulate / (1 - 3 * accumulate) + 6 * u) * 2, rel=1e-9)


def test_pooling() -> None:
    """A maximum passes the largest error of its window, a mean the mean; both may round."""
    x = torch.tensor([[[1.0, -2.0, 4.0, 3.0]]])
    for pool, value in ((nn.MaxPool1d(2), [1.0, 4.0]), (nn.AvgPool1d(2), [-0.5, 3.5])):
        model = nn.Sequential(nn.Conv1d(1, 1, 1, bias=False), pool)
        nn.init.constant_(model.get_parameter("0.weight"), 1.0)
        error = gamma(1) * x.abs().double() + TINY * (x.abs() + 3)
        magnitude = x.abs() + error
        # As if the window were all positions, which is what global pooling sums.
        expected = pool(error) + gamma(4) * pool(magnitude)
        same(bound(model, x), expected)
        assert model(x).tolist() == [[value]]


def pooled(function: Callable[[Tensor], Tensor], conv: nn.Module) -> nn.Module:
    """A convolution, and the function of what it makes."""
    return Written(lambda m, x: function(m.bn(x)), norm=conv)


EXTREMA: dict[str, Callable[[Any], Tensor]] = {
    "amax": lambda h: torch.amax(h, 2),
    "amin": lambda h: h.amin(2),
    "max": lambda h: torch.max(h, 2)[0],
    "min": lambda h: h.min(dim=2).values,
    "by another name": lambda h: h.max(axis=2, keepdim=True)[0].squeeze(2),
    "largest of two": lambda h: torch.max(h, -h).amax(2),
    "smaller of two": lambda h: torch.minimum(h, -h).amax(2),
}


@pytest.mark.parametrize("name", EXTREMA)
def test_extrema_are_off_by_the_largest_error_compared(name: str) -> None:
    """Whichever value is the extremum, and wherever its error is."""
    torch.manual_seed(0)
    conv = nn.Conv1d(2, 3, 1)
    x = torch.randn(5, 2, 7) * torch.logspace(-3, 3, 7)
    error = bound(nn.Sequential(conv), x)
    same(bound(pooled(EXTREMA[name], conv), x), error.amax(2))


def test_what_only_moves_entries_adds_nothing() -> None:
    conv = nn.Conv1d(2, 3, 1)
    x = torch.randn(5, 2, 7)
    error = bound(nn.Sequential(conv), x)
    same(bound(pooled(lambda h: h[:, :, None, 1:].squeeze(2), conv), x), error[:, :, 1:])
    same(bound(pooled(lambda h: h.unsqueeze(3), conv), x), error[..., None])
    masked = pooled(lambda h: h[h > 0], conv)
    with pytest.raises(enorm.UnsupportedModel, match="no rounding bound is known"):
        enorm.error_bound(masked, x)


def test_options_of_pooling_functions_count() -> None:
    """Given by name, they are those of the error too."""
    torch.manual_seed(0)
    conv = nn.Conv1d(1, 2, 1)
    x = torch.randn(2, 1, 9)
    for function, module in (
        (lambda h: torch.avg_pool1d(h, 3, stride=1), nn.AvgPool1d(3, 1)),
        (lambda h: F.max_pool1d(h, 3, stride=2, padding=1), nn.MaxPool1d(3, 2, 1)),
    ):
        written = pooled(function, conv)
        same(enorm.error_bound(written, x), enorm.error_bound(nn.Sequential(conv, module), x))


def test_pooling_that_returns_indices_has_no_bound() -> None:
    model = nn.Sequential(nn.Conv1d(1, 1, 1), nn.MaxPool1d(2, return_indices=True))
    text = r"^no rounding bound is known for 1 \(MaxPool1d\) with these options$"
    with pytest.raises(enorm.UnsupportedModel, match=text):
        enorm.error_bound(model, torch.ones(1, 1, 4))


def test_operations_before_the_first_layer_round_in_its_dtype() -> None:
    model = nn.Sequential(nn.LeakyReLU(0.5), nn.Linear(1, 1, bias=False))
    nn.init.constant_(model.get_parameter("1.weight"), 2.0)
    error = U * 3.0
    expected = 2 * error + gamma(1) * 2 * (3 + error)
    found = bound(model, torch.tensor([[3.0]]))
    assert found.item() == pytest.approx(expected, rel=1e-9)


def test_batchnorm_in_eval_mode() -> None:
    model, x, value, error = two_layers(norm := nn.BatchNorm1d(2))
    model.eval()
    with torch.no_grad():
        norm.weight.copy_(torch.tensor([2.0, -0.5]))
        norm.bias.copy_(torch.tensor([0.25, -1.0]))
    norm.running_mean = torch.tensor([0.5, -2.0])
    norm.running_var = torch.tensor([4.0, 0.25])
    s = (norm.running_var.double() + 1e-5).sqrt()
    factor = torch.tensor([2.0, 0.5]).double() / s
    mean = norm.running_mean.double()
    rounding = factor * (value.abs() + error + mean.abs()) + torch.tensor([0.25, 1.0])
    after = factor * error + gamma(8) * rounding + TINY
    weight = torch.tensor([2.0, -0.5]).double()
    normalized = weight * (value - mean) / s + torch.tensor([0.25, -1.0])
    same(bound(model, x), last(normalized, after))


@pytest.mark.parametrize("tracked", [True, False])
def test_batchnorm_in_train_mode(tracked: bool) -> None:
    """Statistics of the two inputs, each off by the errors of the values they are made of."""
    norm = nn.BatchNorm1d(2, affine=False, track_running_stats=tracked)
    model, x, value, error = two_layers(norm)
    kept = [buffer.clone() for buffer in model.buffers()]
    mean, variance = value.mean(0), value.var(0, correction=0)
    s = (variance + 1e-5).sqrt()
    of_mean = error.mean(0) + 4 * U * (value.abs() + error).mean(0)
    of_s = error.square().mean(0).sqrt()
    of_s += 10 * U * variance.sqrt() * (variance + mean.square()).sqrt() / s
    normalized = (value - mean) / s
    after = (error + of_mean + normalized.abs() * of_s) / (s - of_s)
    after += gamma(8) * (value.abs() + error + mean.abs()) / (s - of_s) + TINY
    same(bound(model, x, training=tracked), last(normalized, after))
    assert all(map(torch.equal, kept, model.buffers()))
    assert model.training


def test_statistics_of_half_precision_accumulate_in_float32() -> None:
    """Values 1 and 3: mean 2, variance 1."""
    model = nn.Sequential(nn.BatchNorm1d(1)).bfloat16()
    x = torch.tensor([[1.0], [3.0]], dtype=torch.bfloat16)
    s = (1 + 1e-5) ** 0.5
    of_mean, of_s = 4 * U * 2, 10 * U * 5**0.5 / s
    rounding = 10 * U / (1 - 10 * U) + 6 * 2.0**-8
    expected = [
        (of_mean + of_s / s) / (s - of_s) + rounding * (value + 2) / (s - of_s) for value in (1, 3)
    ]
    same(bound(model, x, training=True), torch.tensor(expected, dtype=torch.float64)[:, None])


def test_what_is_zero_may_underflow_only() -> None:
    """A layer, and a BatchNorm, on zeros: the smallest subnormals are all that is left."""
    norm = nn.Sequential(nn.BatchNorm1d(1)).eval()
    assert bound(norm, torch.zeros(1, 1)).item() == pytest.approx(TINY, rel=1e-9)
    layer = nn.Sequential(nn.Linear(2, 1, bias=False))
    assert bound(layer, torch.zeros(1, 2)).item() == pytest.approx(4 * TINY, rel=1e-9)


def test_a_batch_without_variance_has_no_bound() -> None:
    norm = nn.BatchNorm1d(2, eps=1e-30)
    model, _, _, _ = two_layers(norm)
    with pytest.raises(
        enorm.UnsupportedModel,
        match=r"^no rounding bound is known for 1 \(BatchNorm1d\): its batch varies less than rou",
    ):
        enorm.error_bound(model, torch.ones(3, 1), training=True)
    found = enorm.verify(model, model, torch.ones(3, 1), training=True)
    assert (found.error, found.bound, found.ratio, found.ok) == (0.0, None, None, True)
    assert found.reason is not None
    assert "varies less than rounding" in found.reason


FORMS: dict[str, Callable[[Tensor], Tensor]] = {
    "function": F.relu,
    "method": lambda h: h.relu(),
    "in place": lambda h: h.relu_(),
    "copied": lambda h: h.relu().clone().contiguous(),
    "flattened": lambda h: torch.flatten(h.relu(), 1),
    "flattened by method": lambda h: h.relu().flatten(start_dim=1),
    "viewed": lambda h: h.relu().view(h.size(0), -1),
    "reshaped": lambda h: torch.reshape(h.relu(), (h.shape[0], 6)),
    "reshaped by method": lambda h: h.relu().reshape(-1, 6),
    "sized by name": lambda h: h.relu().view(h.size(dim=0), -1),
    "asked": lambda h: (h.relu(), h.dim())[0],
    "leaky": lambda h: F.leaky_relu(h, 0.0),
    "leaky by name": lambda h: F.leaky_relu(h, negative_slope=0.0),
    "pooled": lambda h: F.max_pool1d(h.relu().view(h.size(0), 6, 1), 1).view(h.size(0), -1),
    "dropped in eval": lambda h: F.dropout(h.relu(), 0.5, False),
    "dropped by name": lambda h: F.dropout(h.relu(), training=False),
}


@pytest.mark.parametrize("form", FORMS)
def test_functional_forms_have_the_bound_of_modules(form: str) -> None:
    """Equal where nothing rounds, and a little more where a slope or a window might."""
    torch.manual_seed(0)
    written = Written(lambda m, x: m.b(FORMS[form](m.a(x))))
    modules = nn.Sequential(written.a, nn.ReLU(), written.b)
    x = torch.randn(4, 6)
    expected = enorm.error_bound(modules, x)
    found = enorm.error_bound(written, x)
    if form.startswith(("leaky", "pooled")):
        assert (found > expected).all()
        assert (found < 2 * expected).all()
    else:
        same(found, expected)
    torch.testing.assert_close(written(x), modules(x))


def test_slopes_given_to_functions_count() -> None:
    steep = Written(lambda m, x: m.b(F.leaky_relu(m.a(x), -5.0)))
    x = torch.randn(4, 6)
    plain = Written(lambda m, x: m.b(F.leaky_relu(m.a(x))))
    plain.load_state_dict(steep.state_dict())
    same(
        enorm.error_bound(plain, x),
        enorm.error_bound(nn.Sequential(plain.a, nn.LeakyReLU(0.01), plain.b), x),
    )
    same(
        enorm.error_bound(steep, x),
        enorm.error_bound(nn.Sequential(steep.a, nn.LeakyReLU(-5.0), steep.b), x),
    )


def test_in_place_operations_reach_every_reader() -> None:
    """The operand's later reader sees the result, in its value and in its error."""

    def code(model: Written, x: Tensor) -> object:
        h = model.a(x)
        h.relu_()
        return model.b(h)

    written = Written(code)
    x = torch.randn(4, 6)
    same(
        enorm.error_bound(written, x),
        enorm.error_bound(nn.Sequential(written.a, nn.ReLU(), written.b), x),
    )

    def twice(model: Written, x: Tensor) -> object:
        h = model.a(x)
        F.leaky_relu(h, -5.0, inplace=True)
        return model.b(h)

    same(
        enorm.error_bound(in_place := Written(twice), x),
        enorm.error_bound(nn.Sequential(in_place.a, nn.LeakyReLU(-5.0), in_place.b), x),
    )
    steep = nn.Sequential(written.a, nn.LeakyReLU(-5.0, inplace=True), written.b)
    same(
        enorm.error_bound(steep, x),
        enorm.error_bound(nn.Sequential(written.a, nn.LeakyReLU(-5.0), written.b), x),
    )


UNKNOWN: dict[str, tuple[Callable[[], nn.Module], bool, str]] = {
    "module": (lambda: nn.Sequential(nn.Linear(6, 6), nn.GELU()), False, "1 (GELU)"),
    "function": (lambda: Written(lambda m, x: torch.sigmoid(m.a(x))), False, "sigmoid"),
    "method": (lambda: Written(lambda m, x: m.a(x).tanh()), False, "tanh"),
    "dropout": (
        lambda: nn.Sequential(nn.Linear(6, 6), nn.Dropout(0.5)),
        True,
        "1 (Dropout) in train mode",
    ),
    "functional dropout": (
        lambda: Written(lambda m, x: F.dropout(m.a(x))),
        False,
        "dropout in train mode",
    ),
    "switched dropout": (
        lambda: Written(lambda m, x: F.dropout(m.a(x), 0.5, m.training)),
        True,
        "dropout in train mode",
    ),
    "outputs": (
        lambda: Written(lambda m, x: (m.a(x), m.b(x))),
        False,
        "outputs that are not one tensor",
    ),
}


@pytest.mark.parametrize("name", UNKNOWN)
def test_where_no_bound_is_known(name: str) -> None:
    make, training, what = UNKNOWN[name]
    with pytest.raises(enorm.UnsupportedModel) as caught:
        enorm.error_bound(make(), torch.randn(2, 6), training=training)
    assert str(caught.value) == f"no rounding bound is known for {what}"


def test_dropout_that_drops_nothing_has_a_bound() -> None:
    model = nn.Sequential(nn.Linear(6, 6), nn.Dropout(0.0))
    x = torch.randn(2, 6)
    same(enorm.error_bound(model, x, training=True), enorm.error_bound(model[:1], x))
    dropping = nn.Sequential(model[0], nn.Dropout(0.5))
    same(enorm.error_bound(dropping, x), enorm.error_bound(model[:1], x))


def test_the_bound_is_within_that_of_absolute_networks() -> None:
    """At most ``((1+γ)^q − 1) f_{|W|,|b|}(|x|)``, the contract's."""
    net = Net(inputs=4, hidden=(Hidden(out=6), Hidden(out=6)), dtype="float32", seed=3)
    model, x = net.build(), net.draw_inputs()
    absolute = net.build().double()
    with torch.no_grad():
        for parameter in absolute.parameters():
            parameter.abs_()
    reach = absolute(x.double().abs()) * ((1 + gamma(6)) ** 3 - 1)
    assert (bound(model, x) <= reach * (1 + 1e-6)).all()
    assert (bound(model, x) >= reach / 100).all()


def test_verify_measures_the_worst_output() -> None:
    """Its error, its bound and their ratio, in the mode that was asked for."""
    net = Net(inputs=3, hidden=(Hidden(out=4, batchnorm=True),), dtype="float32", seed=3)
    before, after, x = net.build(), net.build(), net.draw_inputs()
    with torch.no_grad():
        after.get_parameter("3.bias")[1] += 1.0
    buffers = [buffer.clone() for buffer in after.buffers()]
    for training in (False, True):
        found = enorm.verify(before, after, x, training=training)
        assert found.error == pytest.approx(1.0, rel=1e-6)
        assert found.bound is not None
        assert found.ratio is not None
        assert 0 < found.bound < 1e-4
        assert found.ratio >= found.error / found.bound * 0.99
        assert found.ok is False
        assert found.reason is None
        unmoved = enorm.verify(before, before, (x,), rewrites=0, training=training)
        assert (unmoved.error, unmoved.ratio, unmoved.ok) == (0.0, 0.0, True)
    assert all(map(torch.equal, buffers, after.buffers()))
    assert not after.training


@pytest.mark.parametrize("training", [False, True])
def test_verify_adds_the_bounds_of_both_models(training: bool) -> None:
    """That before without rewrites, that after with as many as there were; by default one."""
    net = Net(inputs=3, hidden=(Hidden(out=4, batchnorm=True),), outputs=1, dtype="float32")
    before, after, x = net.build(), net.build(), net.draw_inputs()
    with torch.no_grad():
        after.get_parameter("3.bias")[0] += 1.0
    for rewrites in (1, 5):
        found = enorm.verify(before, after, x, rewrites=rewrites, training=training)
        total = enorm.error_bound(before, x, rewrites=0, training=training)
        total = total + enorm.error_bound(after, x, rewrites=rewrites, training=training)
        assert found.bound is not None
        assert found.bound in total.flatten().tolist()
        assert found.ratio == pytest.approx(1 / total.min().item(), rel=1e-3)
    assert enorm.error_bound(after, x).equal(
        enorm.error_bound(after, x, rewrites=1, training=False)
    )
    assert enorm.verify(before, after, x) == enorm.verify(
        before, after, x, rewrites=1, training=False
    )


def test_verify_fails_on_nan_and_on_other_shapes() -> None:
    one, other = nn.Linear(3, 2), nn.Linear(3, 4)
    text = "^before and after must return tensors alike in number and shape$"
    with pytest.raises(ValueError, match=text):
        enorm.verify(one, other, torch.zeros(1, 3))
    several = Written(lambda m, x: (m.a(x), m.b(x)))
    with pytest.raises(ValueError, match=text):
        enorm.verify(several, Written(lambda m, x: m.a(x)), torch.zeros(1, 6))
    with pytest.raises(ValueError, match="return no numbers to compare"):
        enorm.verify(one, one, torch.zeros(0, 3))
    with pytest.raises(TypeError, match=r"a tuple of tensors or tensors by name, got str$"):
        enorm.verify(one, one, "x")
    sound, spoiled = (nn.Sequential(nn.Linear(3, 2)) for _ in range(2))
    nn.init.constant_(spoiled.get_parameter("0.bias"), float("nan"))
    found = enorm.verify(sound, spoiled, torch.zeros(1, 3))
    assert found.ok is False
    assert found.ratio == float("inf")
    half = nn.Sequential(nn.Linear(3, 2))
    half.load_state_dict(sound.state_dict())
    nn.init.constant_(half.get_parameter("0.bias"), 0.0)
    with torch.no_grad():
        half.get_parameter("0.bias")[1] = float("nan")
    assert math.isnan(enorm.verify(sound, half, torch.zeros(1, 3)).error)


def test_what_rounds_nowhere_is_exact() -> None:
    """No bound to divide by, and no difference."""
    model = nn.Sequential(nn.ReLU())
    found = enorm.verify(model, model, torch.ones(1, 3))
    assert (found.error, found.bound, found.ratio, found.ok) == (0.0, 0.0, 0.0, True)


class Gate(nn.Module):
    """A second input that has a default."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(3, 2)

    def forward(self, x: Tensor, other: Tensor | None = None) -> Tensor:
        """The layer on one of the two."""
        result: Tensor = self.fc(x if other is None else other)
        return result


def test_inputs_that_are_given_are_used() -> None:
    model = Gate()
    x, other = torch.zeros(1, 3), torch.ones(1, 3)
    assert enorm.error_bound(model, (x, other)).equal(enorm.error_bound(model, other))
    assert not enorm.error_bound(model, (x, other)).equal(enorm.error_bound(model, x))


BY_NAME: list[Callable[[Written, Tensor], object]] = [
    lambda m, x: m.b(input=F.relu(m.a(input=x))),
    lambda m, x: m.b(F.relu(m.bn(input=m.a(x)))),
    lambda m, x: torch.mean(input=m.b(F.relu(input=m.a(x))), dim=1),
    lambda m, x: m.b(torch.flatten(input=F.relu(m.a(x)), start_dim=1)),
    lambda m, x: m.c(torch.cat(tensors=[m.b(F.relu(m.a(x)))], dim=-1)),
]
BY_PLACE: list[Callable[[Written, Tensor], object]] = [
    lambda m, x: m.b(F.relu(m.a(x))),
    lambda m, x: m.b(F.relu(m.bn(m.a(x)))),
    lambda m, x: torch.mean(m.b(F.relu(m.a(x))), 1),
    lambda m, x: m.b(torch.flatten(F.relu(m.a(x)), 1)),
    lambda m, x: m.c(torch.cat([m.b(F.relu(m.a(x)))], -1)),
]


@pytest.mark.parametrize("which", range(len(BY_NAME)))
def test_arguments_by_their_names(which: int) -> None:
    """The same bound as for arguments in their places."""
    named, placed = (Written(codes[which], norm=nn.BatchNorm1d(6)) for codes in (BY_NAME, BY_PLACE))
    placed.load_state_dict(named.state_dict())
    x = torch.randn(5, 6)
    assert torch.equal(bound(named, x), bound(placed, x))


def test_slopes_given_to_the_function() -> None:
    """Above 1 they count, as those of the module do."""
    slopes = nn.Parameter(torch.full((6,), 5.0))
    model = Written(lambda m, x: m.b(F.prelu(m.a(x), cast(Any, m).slopes)))
    model.slopes = slopes
    module = nn.Sequential(model.a, nn.PReLU(6), model.b)
    module[1].weight = slopes
    x = torch.randn(5, 6)
    assert torch.equal(bound(model, x), bound(module, x))
