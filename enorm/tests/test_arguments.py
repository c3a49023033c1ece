"""What forward is called with, and what it returns."""

from __future__ import annotations

import copy
import functools
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import enorm
from enorm.tests.test_trace import groups

X = torch.zeros(2, 6)
ONES = torch.ones(3)
WHOLE = [(["a"], ["b"], 5)]


class Layers(nn.Module):
    """Two Linear layers."""

    ids: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(6, 5), nn.Linear(5, 3)
        self.register_buffer("ids", torch.ones(1, 9))

    def run(self, x: Tensor) -> Any:
        """One after the other."""
        return self.b(F.relu(self.a(x)))


def checked(forward: Callable[..., Any]) -> Callable[..., Any]:
    """As libraries decorate forward: another code object, the same signature."""

    @functools.wraps(forward)
    def wrapper(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        kwargs.pop("verbose", None)
        return forward(self, *args, **kwargs)

    return wrapper


class Decorated(Layers):
    """All of its arguments have defaults."""

    @checked
    def forward(
        self,
        x: Tensor | None = None,
        mask: Tensor | None = None,
        *,
        scale: Any = (1, 2),
        **rest: Any,
    ) -> Any:
        """As described."""
        if x is None:
            raise ValueError("x is needed")
        y = self.run(x if mask is None else x * mask)
        return {"y": y * scale[1], **rest}


def test_decorated_code_keeps_its_arguments() -> None:
    for given in (X, (X, X), {"x": X}, {"mask": X, "x": X}):
        assert groups(enorm.trace(Decorated(), given)) == WHOLE
    words = (
        r"ValueError: x is needed\. All arguments keep their defaults: give enorm\.trace example"
    )
    with pytest.raises(enorm.UnsupportedModel, match=words):
        enorm.trace(Decorated())


@pytest.mark.parametrize(
    "default", [None, True, 2, 0.5, "relu", (1, 2), [3], {"a": 1}, F.relu, torch.float32]
)
def test_defaults_of_any_kind_are_kept(default: Any) -> None:
    class Model(Layers):
        def forward(self, x: Tensor, how: Any = default, *, then: Any = default) -> Any:
            """As described."""
            assert how == then == default
            return self.run(x)

    assert groups(enorm.trace(Model())) == groups(enorm.trace(Model(), X)) == WHOLE


def test_a_tensor_by_default_is_an_input() -> None:
    """It may be given another one, and must not be written into."""
    offset = torch.zeros(1, 6)

    class Model(Layers):
        def forward(self, x: Tensor, how: str = "plain", by: Tensor = offset) -> Any:
            """As described."""
            by += 1.0
            assert how == "plain"
            return self.run(x + by)

    for given in (None, X, {"x": X}, {"x": X, "by": X}):
        assert groups(enorm.trace(Model(), given)) == WHOLE
    assert torch.equal(offset, torch.zeros(1, 6))


def test_any_number_of_inputs_is_counted_with_an_example() -> None:
    class Model(Layers):
        def forward(self, *inputs: Tensor) -> Any:
            """As described."""
            return self.run(sum(inputs) / len(inputs))  # type: ignore[arg-type]

    for count in (1, 2, 3):
        assert groups(enorm.trace(Model(), (X,) * count)) == WHOLE
    with pytest.raises(enorm.UnsupportedModel, match=r"give enorm\.trace example_inputs"):
        enorm.trace(Model())


class Batch(Mapping[str, Tensor]):
    """As tokenizers return it."""

    def __getitem__(self, name: str) -> Tensor:
        return {"x": X, "mask": X}[name]

    def __iter__(self) -> Iterator[str]:
        return iter(("x", "mask"))

    def __len__(self) -> int:
        return 2


class Shifted(Layers):
    """One argument without a default, one that is a tensor, one by its name, and any others."""

    def forward(self, x: Tensor, by: Tensor = ONES, *, scale: Any = None, **more: Tensor) -> Tensor:
        """As described."""
        y: Tensor = self.run(x) + by
        for factor in (scale, *more.values()):
            y = y if factor is None else y * factor
        return y


def test_the_function_is_compared_with_inputs_by_name() -> None:
    torch.manual_seed(0)
    before, x, wide = Shifted(), torch.randn(64, 6), torch.full((3,), 100.0)
    after = copy.deepcopy(before)
    enorm.balance_(after)
    usual = enorm.error_bound(before, x)
    torch.testing.assert_close(enorm.error_bound(before, {"x": x}), usual)
    # In the order of the names or not, and under names of which forward has none.
    for inputs in (
        {"x": x, "scale": wide},
        {"scale": wide, "x": x, "by": ONES},
        {"x": x, "mask": wide},
    ):
        assert bool((enorm.error_bound(before, inputs) > 50 * usual).all())
        found = enorm.verify(before, after, inputs)
        assert found.ok
        assert found.bound is not None
        with torch.no_grad():
            error = (before(**inputs) - after(**inputs)).double().abs().amax()
        assert found.error == error > 0
    torch.testing.assert_close(
        enorm.error_bound(before, {"by": wide, "x": x}), enorm.error_bound(before, (x, wide))
    )


@pytest.mark.parametrize("inputs", ["x", {"x": 1}, (X, None)], ids=str)
def test_inputs_that_are_no_tensors_are_one_sentence(inputs: Any) -> None:
    message = "^inputs must be a tensor, a tuple of tensors or tensors by name, got "
    with pytest.raises(TypeError, match=message):
        enorm.verify(Shifted(), Shifted(), inputs)
    with pytest.raises(TypeError, match=message):
        enorm.error_bound(Shifted(), inputs)


def test_any_mapping_gives_inputs_by_name() -> None:
    assert groups(enorm.trace(Decorated(), Batch())) == WHOLE
    with pytest.raises(TypeError, match="a tuple of tensors or tensors by name, got str"):
        enorm.trace(Decorated(), {"x": "a batch"})


def test_buffers_take_sizes_of_inputs() -> None:
    class Model(Layers):
        def forward(self, x: Tensor) -> Any:
            """As described."""
            n = x.size(0)
            mask = self.ids[:, :1].expand(n, 1) * self.ids.new_ones(n, 1) * self.ids[0, 0].view(1)
            encoded = self.ids[:, : x.size(1)] + self.ids[0][x.size(0)]
            y = self.run(x + encoded)
            return y * mask.to(x.device) * self.ids[0, :1].repeat(n, 1).reshape(n, -1)

    for given in (None, X):
        plan = enorm.trace(Model(), given)
        assert groups(plan) == WHOLE
        assert plan.size_dependent == ()
    expand = torch.Tensor.expand
    assert not {"expand", "__getitem__"} & vars(torch.Tensor).keys()
    assert expand(torch.ones(1), 3).shape == (3,)


@dataclass
class Output:
    """Of a model's own."""

    y: Tensor
    hidden: Any = None


@dataclass
class Counted:
    """With a field that its making takes no value for."""

    y: Tensor
    n: int = field(init=False, default=1)


class Cache:
    """Holds what a later call is to go on with."""

    def __init__(self) -> None:
        self.held: list[Tensor] = []


class Named(OrderedDict[str, Any]):
    """As Hugging Face returns it."""


RETURNS: dict[str, tuple[Callable[[Any, Any], Any], bool]] = {
    "an object": (lambda y, h: Output(y), True),
    "an object that makes a part of itself": (lambda y, h: Counted(y), True),
    "an object with the activations": (lambda y, h: Output(y, h), False),
    "an object in a list": (lambda y, h: [y, {"more": Output(y, [h])}], False),
    "a mapping": (lambda y, h: Named(y=y, nothing=None), True),
    "a mapping with the activations": (lambda y, h: Named(y=y, h=(h,)), False),
    "a cache": (lambda y, h: (y, Cache()), True),
    "a full cache": (lambda y, h: (y, _full(h)), False),
}


def _full(h: Tensor) -> Cache:
    cache = Cache()
    cache.held.append(h)
    return cache


@pytest.mark.parametrize("name", RETURNS)
def test_objects_that_are_returned(name: str) -> None:
    """What is in them is seen from outside."""
    returned, free = RETURNS[name]

    class Model(Layers):
        def forward(self, x: Tensor) -> Any:
            """As described."""
            h = F.relu(self.a(x))
            return returned(self.b(h), h)

    for given in (None, X):
        plan = enorm.trace(Model(), given)
        assert groups(plan) == (WHOLE if free else [])
        assert free == (plan.skipped == ())


def test_objects_are_no_arguments_of_operations() -> None:
    class Model(Layers):
        def forward(self, x: Tensor) -> Any:
            """As described."""
            return self.run(x.add(Cache()))  # type: ignore[arg-type]

    with pytest.raises(enorm.UnsupportedModel, match="NotImplementedError: argument of type"):
        enorm.trace(Model())


def _hugging_face() -> dict[str, Callable[[Any], nn.Module]]:
    small: dict[str, Any] = {"hidden_size": 12, "num_attention_heads": 2, "num_hidden_layers": 2}
    return {
        "ResNet": lambda hf: hf.ResNetForImageClassification(
            hf.ResNetConfig(embedding_size=8, hidden_sizes=[8, 12], depths=[1, 2])
        ),
        "ViT": lambda hf: hf.ViTForImageClassification(
            hf.ViTConfig(**small, intermediate_size=16, image_size=32, patch_size=8)
        ),
        "BERT": lambda hf: hf.BertForSequenceClassification(
            hf.BertConfig(**small, intermediate_size=16, vocab_size=20, hidden_act="relu")
        ),
        "OPT": lambda hf: hf.OPTForCausalLM(
            hf.OPTConfig(**small, ffn_dim=16, word_embed_proj_dim=12, vocab_size=20)
        ),
    }


@pytest.mark.parametrize(("name", "count"), [("ResNet", 8), ("ViT", 5), ("BERT", 3), ("OPT", 6)])
def test_models_of_hugging_face(name: str, count: int) -> None:
    """Decorators, keyword arguments, caches, masks made of sizes, branches on sizes."""
    hf: Any = pytest.importorskip("transformers", reason="transformers is not installed")
    torch.manual_seed(0)
    model = _hugging_face()[name](hf).double().eval()
    inputs: dict[str, Tensor] = (
        {"input_ids": torch.randint(3, 20, (2, 7)), "attention_mask": torch.ones(2, 7).long()}
        if name in ("BERT", "OPT")
        else {"pixel_values": torch.randn(2, 3, 32, 32).double()}
    )
    plan = enorm.trace(model, inputs)
    assert len(plan.groups) == count
    before = copy.deepcopy(model)
    enorm.balance_(model, plan)
    with torch.no_grad():
        found, expected = model(**inputs).logits, before(**inputs).logits
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)
    assert enorm.verify(before, model, inputs, plan=plan, training=name != "ResNet").ok
