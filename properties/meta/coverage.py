"""What the strategies claim to reach, and how often they do."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from operator import attrgetter
from typing import Any

from hypothesis import Phase, given, settings

from properties.specs import Hidden, Net
from properties.strategies import ALL_DTYPES, nets

NETS = nets(dtypes=ALL_DTYPES)
DTYPES = ("float64", "float32", "bfloat16", "float16")


def _any(predicate: Callable[[Hidden], bool]) -> Callable[[Net], bool]:
    return lambda net: any(predicate(layer) for layer in net.hidden)


def _depth(net: Net) -> int:
    return len(net.hidden)


def _equals(value: Any, of: Callable[[Net], Any]) -> Callable[[Net], bool]:
    return lambda net: bool(of(net) == value)


FEATURES: Mapping[str, Callable[[Net], bool]] = {
    "a hidden layer with bias": _any(lambda layer: layer.bias),
    "no hidden layer with bias": lambda net: not any(layer.bias for layer in net.hidden),
    "dead units, incoming": _any(lambda layer: bool(layer.dead_in)),
    "dead units, outgoing": _any(lambda layer: bool(layer.dead_out)),
    "no dead unit": lambda net: not any(one.dead_in or one.dead_out for one in net.hidden),
    "BatchNorm": _any(lambda layer: layer.batchnorm),
    "ReLU": _any(lambda layer: layer.slope == 0),
    "LeakyReLU": _any(lambda layer: layer.slope > 0),
    "negative slope below zero": _any(lambda layer: layer.slope < 0),
    "width 1": _any(lambda layer: layer.out == 1),
    **{f"depth {n}": _equals(n, _depth) for n in range(1, 6)},
    "Linear only": lambda net: net.axes == 0,
    **{f"convolution {n}d": _equals(n, attrgetter("axes")) for n in (1, 2, 3)},
    "convolutional output": lambda net: net.head == "conv",
    "flatten of several positions": lambda net: net.axes > 0 and net.head == "linear",
    "kernel above 1": _any(lambda layer: layer.kernel > 1),
    "stride": _any(lambda layer: layer.stride > 1),
    "padding": _any(lambda layer: layer.padding > 0),
    "dilation": _any(lambda layer: layer.dilation > 1 and layer.kernel > 1),
    "max pooling": _any(lambda layer: layer.pool == "max"),
    "average pooling": _any(lambda layer: layer.pool == "avg"),
    **{name: _equals(name, attrgetter("dtype")) for name in DTYPES},
    "scales equal": lambda net: net.decades == 0,
    "scales over up to ±1.5 decades": lambda net: 0 < net.decades <= 1.5,
    "scales over ±4 decades and more": lambda net: net.decades >= 4,
    "raw-pixel inputs": lambda net: net.input_scale == 255,
}


def shares(examples: int = 1000) -> dict[str, float]:
    """Share of drawn networks with each feature."""
    found: Counter[str] = Counter()
    drawn = 0

    @settings(
        settings.get_profile("ci"), max_examples=examples, database=None, phases=[Phase.generate]
    )
    @given(NETS)
    def draw(net: Net) -> None:
        nonlocal drawn
        drawn += 1
        found.update(name for name, has in FEATURES.items() if has(net))

    draw()
    return {name: found[name] / drawn for name in FEATURES}
