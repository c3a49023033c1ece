"""Code that asks for sizes goes the way that those of the example inputs take."""

from __future__ import annotations

import collections
import copy
import functools
import gc
import inspect
import math
import pickle
import subprocess
import sys
import threading
import weakref
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import enorm
from enorm.tests.test_trace import groups


class Between(nn.Module):
    """Two convolutions and what ``code`` makes of the values between them."""

    def __init__(self, code: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.code = code
        self.a, self.b = nn.Conv2d(3, 5, 3, padding=1), nn.Conv2d(5, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        """As described."""
        y: Tensor = self.b(self.code(F.relu(self.a(x))))
        return y


class Attributes:
    """Keeps what it is given, as a cache does."""

    last: Tensor | None = None


def padded(x: Tensor) -> Tensor:
    """To even sizes, as windows want it."""
    if x.shape[2] % 2 or x.shape[3] % 2:
        x = F.pad(x, (0, x.shape[3] % 2, 0, x.shape[2] % 2))
    return x


def halved(x: Tensor) -> Tensor:
    """Padded as strided convolutions in other frameworks do."""
    missing = max(math.ceil(x.shape[2] / 2) * 2 - x.shape[2], 0)
    return F.max_pool2d(F.pad(x, (0, 0, 0, missing)), 2) if missing >= 0 else x


def by_rows(x: Tensor) -> Tensor:
    """One after the other."""
    return torch.cat([x[:, :, row : row + 1] for row in range(x.shape[2])], 2)


def by_parts(x: Tensor) -> Tensor:
    """As many axes as there are."""
    last = list(x.shape)[-1]
    return x * last if len(x.shape) == 4 else torch.sigmoid(x)


def by_samples(x: Tensor) -> Tensor:
    """As many as the batch has."""
    return F.relu(x) if len(x) == 2 else torch.sigmoid(x)


def by_root(x: Tensor) -> Tensor:
    """The side of a square."""
    side = int(x.flatten(2).shape[2] ** 0.5)
    wide: Tensor = F.pad(x, (0, side)) * float(x.shape[3])
    return wide


ASK = [padded, halved, by_rows, by_parts, by_samples, by_root]


@pytest.mark.parametrize("code", ASK, ids=lambda code: code.__name__)
def test_code_that_asks_for_sizes_is_followed(code: Callable[[Tensor], Tensor]) -> None:
    torch.manual_seed(0)
    model = Between(code).double()
    inputs = torch.randn(2, 3, 6, 6, dtype=torch.float64)
    hint = r"If it asks for sizes there, give enorm.trace example_inputs\. Where"
    with pytest.raises(enorm.UnsupportedModel, match=hint):
        enorm.trace(model)
    plan = enorm.trace(model, inputs)
    assert groups(plan) == [(["a"], ["b"], 5)]
    assert plan.skipped == ()
    lines, start = inspect.getsourcelines(code)
    places = [f"{__file__}:{line}" for line in range(start, start + len(lines))]
    assert set(plan.size_dependent) <= set(places)
    assert plan.size_dependent
    before = copy.deepcopy(model)
    enorm.balance_(model, plan)
    assert not torch.equal(model.a.weight, before.a.weight)
    torch.testing.assert_close(model(inputs), before(inputs), rtol=1e-9, atol=1e-9)
    assert enorm.verify(before, model, inputs).ok
    assert enorm.verify(before, model, inputs).group == plan.groups[0]


def test_other_sizes_go_another_way() -> None:
    model = Between(lambda x: F.relu(x) if x.shape[2] > 6 else torch.sigmoid(x))
    small, large = (enorm.trace(model, torch.empty(2, 3, size, size)) for size in (6, 7))
    assert (len(small.groups), len(large.groups)) == (0, 1)
    assert small.size_dependent == large.size_dependent == large.under("ignore").size_dependent


def test_the_plan_says_where_sizes_count() -> None:
    plan = enorm.trace(Between(padded), torch.empty(2, 3, 6, 6))
    assert str(plan).endswith(
        "\n\nfor inputs of sizes that take the way of example_inputs at\n"
        + "\n".join(plan.size_dependent)
    )
    assert pickle.loads(pickle.dumps(plan)).size_dependent == plan.size_dependent
    assert enorm.trace(Between(F.relu), torch.empty(2, 3, 6, 6)).size_dependent == ()


@pytest.mark.parametrize(
    "code",
    [
        lambda x: x if x.sum() > 0 else -x,
        lambda x: x * int(x.sum()),
        lambda x: x * float(x.amax()),
        lambda x: x[:, :, : x.argmax() + 1].repeat(1, 1, range(x.count_nonzero())[0], 1),
        lambda x: torch.cat(list(x[x > 0])),
        lambda x: x if len(x[x > 0]) else -x,
    ],
)
def test_sizes_do_not_tell_values(code: Callable[[Tensor], Tensor]) -> None:
    with pytest.raises(enorm.UnsupportedModel, match="cannot be traced") as raised:
        enorm.trace(Between(code), torch.empty(2, 3, 6, 6))
    assert "example_inputs" not in str(raised.value)


def test_sizes_that_do_not_fit_are_told_where_code_asks_for_them() -> None:
    with pytest.raises(enorm.UnsupportedModel, match=r"shape \(2, 4, 6, 6\) do not fit the model"):
        enorm.trace(Between(padded), torch.empty(2, 4, 6, 6))
    normalized = Between(lambda x: padded(x.mean((2, 3), keepdim=True)))
    normalized.add_module(
        "a", nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.BatchNorm2d(3), nn.Conv2d(3, 5, 1))
    )
    with pytest.raises(enorm.UnsupportedModel, match="give a batch of two or more"):
        enorm.trace(normalized, torch.empty(1, 3, 6, 6))


def test_what_is_found_on_the_way_leaves_nothing() -> None:
    """Neither in the graph nor in the model, whatever its layers keep."""

    class Keeps(nn.Module):
        count: Tensor

        def __init__(self) -> None:
            super().__init__()
            self.cache = Attributes()
            self.register_buffer("count", torch.zeros(()))
            self.a, self.norm, self.b = nn.Conv2d(3, 5, 1), nn.BatchNorm2d(5), nn.Conv2d(5, 2, 1)

        def forward(self, x: Tensor) -> Tensor:
            self.count += 1
            self.cache.last = x
            x = F.relu(self.norm(self.a(x)))
            if x.shape[2] > 3:
                # Not there yet when the first size was asked for.
                x = x * torch.rand_like(torch.zeros(5, 1, 1))
            return x if x.shape[1] == 4 else self.b(x)

    model = Keeps()
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(enorm.UnsupportedModel, match="draws from torch's generator"):
        enorm.trace(model, torch.empty(2, 3, 6, 6))
    assert model.cache.last is None
    for name, value in model.state_dict().items():
        assert not value.is_meta
        torch.testing.assert_close(value, before[name], rtol=0, atol=0)


def test_constants_and_modules_have_their_sizes() -> None:
    """Those of lazy modules, shared ones, and constants that come up between two questions."""

    def code(x: Tensor) -> Tensor:
        if x.shape[2] == 6:
            x = x + torch.zeros(5, 1, 7)[..., :1]
        return F.relu(x) if x.shape[3] == 6 else torch.sigmoid(x)

    model = Between(code)
    plan = enorm.trace(model, torch.empty(2, 3, 6, 6))
    assert [skip.where for skip in plan.skipped] == ["add in forward"]
    assert len(plan.size_dependent) == 2

    lazy = Between(padded)
    lazy.add_module("b", nn.LazyConv2d(2, 1))
    lazy.add_module("c", lazy.a)
    assert len(enorm.trace(lazy, torch.empty(2, 3, 6, 6)).size_dependent) == 1


def write(into: Tensor, place: Any, value: Any) -> None:
    """As a statement writes."""
    into[place] = value


WRITES: dict[str, Callable[[Tensor], Any]] = {
    "a unit": lambda y: y[:, 0].fill_(1.0),
    "units": lambda y: write(y, (slice(None), slice(2)), 1.0),
    "positions": lambda y: write(y, (..., 0), 1.0),
    "a view": lambda y: write(y.transpose(0, 1), 0, 1.0),
    "its own values": lambda y: write(y, (slice(None), slice(1)), y[:, 1:2]),
}


@pytest.mark.parametrize("name", WRITES)
@pytest.mark.parametrize("shown", [True, False])
def test_what_is_written_into_in_part_is_a_wall(name: str, shown: bool) -> None:
    def code(x: Tensor) -> Tensor:
        WRITES[name](x)
        return x

    plan = enorm.trace(Between(code), torch.empty(2, 3, 6, 6) if shown else None)
    assert not plan.groups
    assert plan.skipped


def test_a_mask_made_in_parts_is_no_activation() -> None:
    def code(x: Tensor) -> Tensor:
        mask = torch.ones(x.shape[2])
        mask[0] = 0.0
        return x * mask[:, None]

    assert groups(enorm.trace(Between(code), torch.empty(2, 3, 6, 6))) == [(["a"], ["b"], 5)]


MADE: dict[str, Callable[[Tensor], Tensor]] = {
    "zeros": lambda x: torch.zeros(x.size(0), 1, 1, 1, device=x.device),
    "ones": lambda x: torch.ones(x.shape, dtype=x.dtype),
    "full": lambda x: torch.full((x.shape[0], 1, 1, 1), 2.0),
    "empty": lambda x: torch.empty(x.shape[2:], device=x.device).fill_(3.0),
    "eye": lambda x: torch.eye(x.shape[2], x.shape[3]),
    "arange": lambda x: torch.arange(x.size(3), device=x.device),
    "linspace": lambda x: torch.linspace(0, 1, x.size(3), device=x.device),
    "tensor": lambda x: torch.tensor([2.0, 3.0], device=x.device)[0],
    "as_tensor": lambda x: torch.as_tensor(x.shape[1], device=x.device),
    "rand": lambda x: torch.rand(x.shape[0], 1, 1, 1, device=x.device) < 0.5,
    "randn": lambda x: torch.randn(x.shape[2:]),
    "randint": lambda x: torch.randint(3, (x.shape[3],), device=x.device),
    "randperm": lambda x: torch.randperm(x.shape[3], device=x.device),
}


@pytest.mark.parametrize("name", MADE)
def test_tensors_made_of_sizes_are_part_of_the_graph(name: str) -> None:
    """Without example inputs, for their sizes are those of each input."""
    torch.manual_seed(0)
    function = getattr(torch, name)
    model = Between(lambda x: x * MADE[name](x)).double()
    plan = enorm.trace(model)
    assert groups(plan) == [(["a"], ["b"], 5)]
    assert plan.size_dependent == ()
    assert getattr(torch, name) is function
    inputs = torch.randn(2, 3, 6, 6, dtype=torch.float64)
    before = copy.deepcopy(model)
    enorm.balance_(model, plan)
    if name.startswith("rand"):
        state = torch.get_rng_state()
        with pytest.raises(enorm.UnsupportedModel, match="numbers drawn from torch's generator"):
            enorm.error_bound(model, inputs)
        assert torch.equal(torch.get_rng_state(), state)
        return
    verified = enorm.verify(before, model, inputs)
    assert verified.ok
    assert verified.bound is not None, verified.reason


@pytest.mark.parametrize(
    "code",
    [
        lambda x: x * torch.full((1,), x.amax()),
        lambda x: x * torch.tensor(x.sum()),
        lambda x: x * torch.as_tensor(x.mean()),
        lambda x: x * torch.arange(x.argmax()).sum(),
        lambda x: x * torch.linspace(0, x.mean(), 6),
    ],
)
def test_tensors_made_of_activations_are_walls(code: Callable[[Tensor], Tensor]) -> None:
    for inputs in (None, torch.empty(2, 3, 6, 6)):
        assert not enorm.trace(Between(code), inputs).groups


class Forked(nn.Module):
    """A sigmoid or a ReLU between two convolutions, as ``code`` says of the input."""

    def __init__(self, code: Callable[[Any, Any], Any]) -> None:
        super().__init__()
        self.code = code
        self.a, self.b = nn.Conv2d(3, 5, 1), nn.Conv2d(5, 2, 1)
        self.l3 = True
        self.register_buffer("buffer", torch.ones(1))

    def forward(self, x: Tensor) -> Tensor:
        """As described."""
        # In place, for what the code does to it is not to be seen here.
        smooth = self.code(self, x.clone())
        h = self.a(x)
        result: Tensor = self.b(torch.sigmoid(h) if smooth else F.relu(h))
        return result


def _found(code: Callable[[], Any]) -> bool:
    try:
        return bool(code())
    except KeyError:
        return False


def _data(x: Tensor) -> Tensor:
    x.data = x[:1]
    return x


# Each is true.
FORKS: dict[str, Callable[[Any, Any], Any]] = {
    "unsqueezed in place": lambda m, x: (x.unsqueeze_(0), x.dim() == 5)[1],
    "resized in place": lambda m, x: (x.resize_(2, 3, 3, 3), x.shape[2] == 3)[1],
    "transposed in place": lambda m, x: (x.transpose_(1, 2), x.shape[1] == 6)[1],
    "other data": lambda m, x: len(_data(x)) == 1,
    "made and unsqueezed": lambda m, x: torch.zeros(x.shape[2]).unsqueeze_(0).dim() == 2,
    "written as a whole": lambda m, x: torch.cat([x, x], 0, out=x.new_zeros(0)).dim() == 4,
    "in a set": lambda m, x: x.shape[1] in {3, 7},
    "in a dictionary": lambda m, x: {3: True}.get(x.shape[1], False),
    "by key": lambda m, x: _found(lambda: {3: True}[x.shape[1]]),
    "as text": lambda m, x: str(x.shape[1]) == "3",
    "formatted": lambda m, x: f"{x.shape[2]:3d}" == "  6",
    "in a name": lambda m, x: getattr(m, f"l{x.shape[1]}", False),
    "by dtype": lambda m, x: {torch.float64: True}.get(x.dtype, False),
    "a tuple in a set": lambda m, x: tuple(x.shape) in {(2, 3, 6, 6)},
    "a set": lambda m, x: len(set(x.shape)) == 3,
    "counted": lambda m, x: collections.Counter(x.shape)[6] == 2,
    "a product of NumPy": lambda m, x: int(np.prod(x.shape[2:])) == 36,
    "an array of NumPy": lambda m, x: np.array(x.shape)[1] == 3,
    "rounded": lambda m, x: round(x.shape[1] / 4, 1) == 0.8,
    "divided": lambda m, x: divmod(x.shape[2], 4) == (1, 2),
    "dividing": lambda m, x: divmod(9, x.shape[0]) == (4, 1),
    "of old, unsqueezed": lambda m, x: (n := x.shape, x.unsqueeze_(0), len(n) == 4)[2],
    "of old, transposed": lambda m, x: (n := x.shape, x.transpose_(1, 2), n[1] == 3)[2],
    "axes of old": lambda m, x: (n := x.ndim, x.unsqueeze_(0), n == 4)[2],
    "a number of entries in a set": lambda m, x: x.numel() in {216},
    "a part's entries in a set": lambda m, x: x.shape[2:].numel() in {36},
    "entries as text": lambda m, x: f"{torch.numel(x)}" == "216",
    "a place in a set": lambda m, x: x.shape.index(3) in {1},
    "a tuple as text": lambda m, x: str(tuple(x.shape)) == "(2, 3, 6, 6)",
    "two as text": lambda m, x: f"{(x.shape[2], x.shape[3])}" == "(6, 6)",
    "as code": lambda m, x: f"{x.shape[2]!r}" == "6",
    "a dtype as code": lambda m, x: repr(x.dtype) == "torch.float64",
    "on a device": lambda m, x: x.device.type == "cpu",
    "on another's device": lambda m, x: m.buffer.device == x.device,
    "a device as text": lambda m, x: str(x.device) == "cpu",
    "with gradients": lambda m, x: (x * m.a.weight[0]).requires_grad,
    "far apart": lambda m, x: not x.transpose(1, 2).is_contiguous(),
    "by strides": lambda m, x: x.stride(1) == 36,
    "by address": lambda m, x: x.data_ptr() != 0,
    "with values": lambda m, x: not x.is_meta,
    "a kind of device in a dictionary": lambda m, x: {"cpu": True}.get(x.device.type, False),
    "a kind of device as text": lambda m, x: str(x.device.type) == "cpu",
    "strides in a set": lambda m, x: x.stride(1) in {36},
    "a gradient in a set": lambda m, x: m.a.weight[0].requires_grad in {True},
    "resized by values": lambda m, x: (x.resize_(x[x > -99].shape), x.dim() == 1)[1],
    "a value in a set": lambda m, x: (x.abs().mean() > -1).item() in {True},
}


# Of these sizes tell nothing.
UNTOLD = list(FORKS)[list(FORKS).index("on a device") :]
# Without example inputs a size as part of a text is what it is in a message.
TEXTS = ("in a name", "a tuple as text", "two as text", "as code", "a dtype as code")


@pytest.mark.parametrize("name", FORKS)
def test_what_the_code_asks_is_answered_as_it_runs_or_not_at_all(name: str) -> None:
    model = Forked(FORKS[name]).double()
    inputs = torch.randn(2, 3, 6, 6, dtype=torch.float64)
    assert FORKS[name](model, inputs.clone())
    if name not in TEXTS:
        with pytest.raises(enorm.UnsupportedModel, match="cannot be traced"):
            enorm.trace(model)
    try:
        plan = enorm.trace(model, inputs)
    except enorm.UnsupportedModel:
        assert name in UNTOLD
    else:
        assert plan.groups == ()
        assert plan.size_dependent


CACHE: dict[Any, Tensor] = {}


@functools.lru_cache
def ramp(count: int, scale: float = 1.0) -> Tensor:
    """Remembers what it made."""
    return torch.linspace(0, scale, count)


def _cached(count: int) -> Tensor:
    if count not in CACHE:
        CACHE[count] = torch.linspace(0, 1, count)
    return CACHE[count]


@pytest.mark.parametrize(
    "code",
    [
        lambda x: x * _cached(x.shape[3]),
        lambda x: x * ramp(x.shape[3]),
        lambda x: x * ramp(x.shape[2], 2.0),
    ],
)
def test_caches_by_size_outlive_tracing(code: Callable[[Tensor], Tensor]) -> None:
    """What tracing has put there is not for calls to find, nor for the next trace."""
    CACHE.clear()
    ramp.cache_clear()
    torch.manual_seed(0)
    inputs = torch.randn(2, 3, 6, 6)
    broken = Between(lambda x: code(x) if x.sum() > 0 else code(-x))
    for _ in range(2):
        with pytest.raises(enorm.UnsupportedModel, match="cannot be traced"):
            enorm.trace(broken, inputs)
        model = Between(code)
        assert groups(enorm.trace(model, inputs)) == [(["a"], ["b"], 5)]
        assert type(model(inputs)) is Tensor


def test_defaults_that_code_fills_stay_empty() -> None:
    class Model(Between):
        def forward(self, x: Tensor, cache: dict[str, Tensor] = {}) -> Tensor:  # noqa: B006
            """As described."""
            if "r" not in cache:
                cache["r"] = torch.ones(x.shape[3], device=x.device)
            return super().forward(x * cache["r"])

    model = Model(F.relu)
    for given in (None, torch.empty(2, 3, 6, 6)):
        assert groups(enorm.trace(model, given)) == [(["a"], ["b"], 5)]
    assert Model.forward.__defaults__ == ({},)
    assert type(model(torch.zeros(2, 3, 6, 6))) is Tensor


def test_what_is_made_for_a_device_may_be_remembered() -> None:
    class Model(Between):
        def __init__(self, key: Callable[[Tensor], Any]) -> None:
            super().__init__(F.relu)
            self.key = key
            self.made: dict[Any, Tensor] = {}

        def forward(self, x: Tensor) -> Tensor:
            """As described."""
            key = self.key(x)
            if key not in self.made:
                self.made[key] = torch.ones(6, device=x.device)
            return super().forward(x * self.made[key])

    keys: list[Callable[[Tensor], Any]] = [lambda x: x.device, lambda x: str(x.device)]
    for key in keys:
        for given in (None, torch.empty(2, 3, 6, 6)):
            model = Model(key)
            assert groups(enorm.trace(model, given)) == [(["a"], ["b"], 5)]
            assert model.made == {}


def test_buffers_that_count_what_they_have_seen() -> None:
    class Counts(Between):
        seen: Tensor

        def __init__(self) -> None:
            super().__init__(padded)
            self.register_buffer("seen", torch.zeros(()))

        def forward(self, x: Tensor) -> Tensor:
            self.seen += x.shape[0]
            return super().forward(x)

    model = Counts()
    assert len(enorm.trace(model, torch.empty(2, 3, 6, 6)).groups) == 1
    assert model.seen == 0
    enorm.error_bound(model, torch.zeros(2, 3, 6, 6))
    assert model.seen == 0


def test_an_input_may_be_given_another_shape() -> None:
    def code(x: Tensor) -> Tensor:
        x.unsqueeze_(0)
        return x[0] if x.dim() == 5 else torch.sigmoid(x)

    class Model(Between):
        def forward(self, x: Tensor) -> Tensor:
            """As described."""
            return super().forward(code(x))

    assert groups(enorm.trace(Model(F.relu), torch.empty(2, 3, 6, 6))) == [(["a"], ["b"], 5)]


def test_modules_that_cannot_be_copied_have_no_sizes() -> None:
    locked: Any = nn.ReLU()
    locked.lock = threading.Lock()
    model = Between(lambda x: model.get_submodule("relu")(x))
    model.add_module("relu", locked)
    assert len(enorm.trace(model, torch.empty(2, 3, 6, 6)).groups) == 1


MISSING: dict[str, float] = {}


def test_functions_that_take_sizes_are_torchs_again() -> None:
    """Also in what torch looks up once, and whatever happens."""

    def code(x: Tensor) -> Tensor:
        with torch.device("cpu"):
            return x * torch.ones(x.shape[3])

    functions = {name: getattr(torch, name) for name in MADE}
    model = Between(code)
    enorm.trace(model)
    broken = Between(lambda x: x * torch.ones(x.shape[3]) * MISSING["not there"])
    with pytest.raises(enorm.UnsupportedModel, match="KeyError"):
        enorm.trace(broken)
    assert functions == {name: getattr(torch, name) for name in MADE}
    assert not {"expand", "view", "__getitem__"} & vars(Tensor).keys()
    with torch.device("meta"):
        assert torch.zeros(2).is_meta
    assert torch.zeros in torch.overrides.get_ignored_functions()
    assert torch.overrides.is_tensor_method_or_property(Tensor.expand)
    seen = weakref.ref(model)
    del model
    gc.collect()
    assert seen() is None


FRESH = """
import torch, enorm
from torch import Tensor, overrides
from torch.utils.checkpoint import checkpoint
class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = torch.nn.Linear(3, 4), torch.nn.Linear(4, 2)
    def forward(self, x):
        ones = torch.ones(x.shape[0], 1)
        with torch.device("cpu"):
            ones = ones * torch.ones(1)
        # Which has torch look up what to do about its functions.
        h = ones * checkpoint(torch.relu, self.a(x), use_reentrant=False)
        return self.b(h if not FAILS or h.sum() > 0 else -h)
try:
    assert len(enorm.trace(Net()).groups) == 1
    assert not FAILS
except enorm.UnsupportedModel:
    assert FAILS
compiled = torch.compile(lambda x: x + torch.zeros(x.shape[0], 1), backend="eager", fullgraph=True)
print(compiled(torch.ones(3, 4)).shape)
with torch.device("meta"):
    print(torch.zeros(2).device, torch.zeros in overrides.get_ignored_functions())
print(overrides.is_tensor_method_or_property(Tensor.expand))
"""


@pytest.mark.parametrize("fails", [False, True])
def test_torch_knows_its_functions_afterwards(fails: bool) -> None:
    """In a process of its own, where nothing has been looked up before."""
    command = [sys.executable, "-W", "ignore", "-c", f"FAILS = {fails}\n{FRESH}"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.stdout == "torch.Size([3, 4])\nmeta True\nTrue\n", done.stderr


def test_functions_are_replaced_only_where_they_take_sizes() -> None:
    zeros, seen = torch.zeros, set()

    def code(x: Tensor, sized: bool) -> Tensor:
        seen.add(torch.zeros is zeros)
        return x * (torch.ones(x.shape[2], x.shape[3]) if sized else torch.ones(6))

    for sized, expected in ((False, {True}), (True, {True, False})):
        seen.clear()
        enorm.trace(Between(functools.partial(code, sized=sized)))
        assert seen == expected


def test_constants_of_the_inputs_dtype_are_those_of_the_network() -> None:
    """Not those of the float64 that bounds are computed in."""

    class Model(Between):
        def forward(self, x: Tensor) -> Tensor:
            """Nothing is left of it in float32."""
            one = torch.full((1,), 1 + 2.0**-30, dtype=x.dtype)
            return super().forward(x) * ((one - 1) * 2.0**30)

    torch.manual_seed(0)
    inputs = torch.randn(2, 3, 6, 6)
    assert enorm.error_bound(Model(F.relu), inputs).amax() < 1e-30
    assert enorm.error_bound(Model(F.relu).double(), inputs.double()).amax() > 1e-20


def limited(x: Tensor) -> Tensor:
    """By limits of the values' dtype, which nobody has to know."""
    return x / torch.finfo(x.dtype).eps


def wide(x: Tensor) -> Tensor:
    """One way for half precision, one for others."""
    return F.relu(x) if torch.finfo(x.dtype).bits > 16 else torch.sigmoid(x)


@pytest.mark.parametrize("code", [limited, wide], ids=lambda code: code.__name__)
def test_limits_of_a_dtype(code: Callable[[Tensor], Tensor]) -> None:
    torch.manual_seed(0)
    model, inputs = Between(code), torch.randn(2, 3, 6, 6)
    if code is wide:
        with pytest.raises(enorm.UnsupportedModel, match="example_inputs"):
            enorm.trace(model)
    for given in (inputs,) if code is wide else (None, inputs):
        plan = enorm.trace(model, given)
        assert groups(plan) == [(["a"], ["b"], 5)]
        assert bool(plan.size_dependent) == (code is wide)
    before = copy.deepcopy(model)
    enorm.balance_(model, plan)
    assert enorm.verify(before, model, inputs, plan=plan).ok
    assert isinstance(torch.finfo(torch.float32), torch.finfo)


def test_a_weight_of_which_only_the_dtype_is_read() -> None:
    """As T5 asks whether its weight is a tensor and of which dtype."""

    class Cast(Between):
        def forward(self, x: Tensor) -> Tensor:
            """As described."""
            x = F.relu(self.a(x))
            if isinstance(self.b.weight, Tensor) and self.b.weight.dtype != torch.int8:
                x = x.to(self.b.weight.dtype)
            y: Tensor = self.b(x)
            return y

    plan = enorm.trace(Cast(padded), torch.randn(2, 3, 6, 6))
    assert groups(plan) == [(["a"], ["b"], 5)]
    assert plan.skipped == ()


def test_lines_are_the_models_own() -> None:
    """Also where torch asks for the number, inside of a function that is looked at."""
    model = Between(lambda x: x * torch.ones(9)[: x.shape[3]].sum())
    plan = enorm.trace(model, torch.randn(2, 3, 6, 6))
    assert groups(plan) == [(["a"], ["b"], 5)]
    assert [line.rpartition(":")[0] for line in plan.size_dependent] == [__file__]
