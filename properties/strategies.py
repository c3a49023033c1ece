"""Hypothesis strategies that draw what the implementation under test declares to accept.

Smaller networks come first, so that a failure shrinks to one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import product
from typing import Any, Literal, TypeVar

import pytest
from hypothesis import example
from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy

from properties.implementation import current, not_applicable
from properties.specs import Hidden, Net

Test = TypeVar("Test", bound=Callable[..., Any])

_ABLE = current().capabilities


def _skipping(missing: str) -> SearchStrategy[Any]:
    """Nothing can be drawn: the property that asks for it is not applicable."""
    return st.builds(pytest.skip, st.just(not_applicable(missing)))


def exponents(*values: float) -> SearchStrategy[float]:
    """Those of ``values`` that the implementation takes; without any, the property is skipped."""
    able = [p for p in values if _ABLE.p is None or p in _ABLE.p]
    return st.sampled_from(able) if able else _skipping(f"p={' or '.join(map(str, values))}")


def dtypes_of(*names: str) -> SearchStrategy[str]:
    """Those of ``names`` that the implementation takes; without any, the property is skipped."""
    able = [name for name in names if name in _ABLE.dtypes]
    return st.sampled_from(able) if able else _skipping(f"dtypes={' or '.join(names)}")


def example_where(able: bool, *arguments: Any) -> Callable[[Test], Test]:
    """An explicit example, if the implementation is able to take it."""
    return example(*arguments) if able else lambda test: test


# One of each, where a property needs no more.
P = 2.0 if _ABLE.p is None or 2.0 in _ABLE.p else _ABLE.p[0]
C = 1.2 if _ABLE.c else 1.0
ORDER = _ABLE.orders[0]
BIAS = _ABLE.biases

SEEDS = st.integers(0, 2**31 - 2)
P_NORMS = (
    st.sampled_from([2.0, 1.0, 3.0, 0.5, 1.5, 6.0]) | st.floats(0.5, 6.0)
    if _ABLE.p is None
    else st.sampled_from(_ABLE.p)
)
C_FACTORS = st.sampled_from([1.0, 1.2, 0.8, 2.0] if _ABLE.c else [1.0])
ORDERS = st.sampled_from(_ABLE.orders)
# Never drawn where none is declared, for such properties are not applicable then.
SOLVERS = st.sampled_from(_ABLE.solvers or ("none",))
# What most networks have is drawn most.
WIDE_DTYPES = dtypes_of("float64", "float32", "float32")
ALL_DTYPES = dtypes_of("float64", "float32", "float32", "bfloat16", "float16")

_HALF = ("bfloat16", "float16")
# Half precision has few decades to spread over before weights underflow.
_DECADES = {"float64": 6.0, "float32": 4.0, "bfloat16": 4.0, "float16": 0.5}


# Units without incoming and without outgoing weights; those that a layer has not are left out.
_DEAD: list[tuple[tuple[int, ...], tuple[int, ...]]] = [
    *[((), ()), ((), ()), ((), ()), ((), ()), ((0,), ()), ((), (0,)), ((0,), (0,))],
    *[((1,), (0,)), ((0, 2), ()), ((), (1, 3)), ((1, 2), (0, 3))],
]


@st.composite
def _hidden(
    draw: st.DrawFn, /, widest: int, batchnorm: bool, dead: bool, geometry: SearchStrategy[Any]
) -> Hidden:
    """A hidden layer; ``geometry`` draws what a convolution has beside.

    Few draws make one layer, each of a whole combination, simplest first: Hypothesis leaves out
    elements of a list only where they consist of at most five.
    """
    out = draw(st.integers(1, widest))
    biases = (False, True) if _ABLE.biases else (False,)
    norms = (False, True) if batchnorm else (False,)
    bias, norm, slope = draw(st.sampled_from([*product(biases, norms, (0.0, 0.1, -0.3))]))
    dead_in, dead_out = draw(st.sampled_from(_DEAD if dead else _DEAD[:1]))
    return Hidden(
        out=out,
        bias=bias,
        batchnorm=norm,
        slope=slope,
        dead_in=tuple(unit for unit in dead_in if unit < out),
        dead_out=tuple(unit for unit in dead_out if unit < out),
        **draw(geometry),
    )


def _geometries(pools: Sequence[str | None]) -> list[dict[str, Any]]:
    """Of convolutions; strides and dilations are one half of the time."""
    names = ("stride", "dilation", "padding", "pool", "kernel")
    values = [*product((1, 1, 2), (1, 1, 2), (0, 1, 2), pools, (1, 2, 3))]
    return [dict(zip(names, combination, strict=True)) for combination in values]


@st.composite
def nets(
    draw: st.DrawFn,
    *,
    dtypes: SearchStrategy[str] = WIDE_DTYPES,
    batchnorm: bool = "affine" in _ABLE.batchnorm,
    dead: bool = True,
    max_decades: float = 6.0,
    max_hidden: int = 5,
) -> Net:
    """Chains of Linear layers, of convolutions, or of convolutions that end in Linear layers."""
    spatial = [axes for axes in (2, 1, 3) if axes in (*_ABLE.mixed, *_ABLE.convolution)]
    axes = draw(st.sampled_from([0, 0, 0, *spatial]))
    heads: list[Literal["linear", "conv"]] = ["linear"] if axes in (0, *_ABLE.mixed) else []
    if axes in _ABLE.convolution:
        heads.append("conv")
    head = draw(st.sampled_from(heads))
    dtype = draw(dtypes)
    widest = 6 if axes == 0 else 4
    # Torch has no AvgPool3d in half precision on a CPU.
    pools = (None, "max") if dtype in _HALF and axes == 3 else (None, "max", "avg")
    linear = _hidden(widest, batchnorm, dead, st.just({}))
    convolution = _hidden(widest, batchnorm, dead, st.sampled_from(_geometries(pools)))
    # Lists, for Hypothesis shrinks them by leaving out elements wherever they stand.
    convolutions = draw(st.lists(convolution, min_size=1, max_size=3)) if axes else []
    room = max_hidden if axes == 0 else 3 - len(convolutions)
    linears = []
    if head == "linear" and room:
        linears = draw(st.lists(linear, min_size=axes == 0, max_size=room))
    # A kernel of 3 with dilation 2 and padding 0 needs five positions; deeper layers need more.
    positions = draw(st.integers(5, 8 if axes < 3 else 6)) if axes else 6
    limit = min(max_decades, _DECADES[dtype])
    return Net(
        inputs=draw(st.integers(1, 5)),
        hidden=(*_padded(convolutions, positions), *linears),
        outputs=draw(st.integers(1, 4)),
        positions=positions,
        axes=axes,
        head=head,
        decades=draw(st.sampled_from([0.0, limit / 4, limit])),
        input_scale=draw(st.sampled_from([1.0, 1.0, 255.0, 1e-3])),
        dtype=dtype,
        seed=draw(SEEDS),
    )


def _padded(convolutions: list[Hidden], positions: int) -> list[Hidden]:
    """The same with enough padding that at least one position remains."""
    found = []
    for layer in convolutions:
        reach = layer.dilation * (layer.kernel - 1) + 1
        padding = max(layer.padding, -(-(reach - positions) // 2))
        found.append(replace(layer, padding=padding))
        positions = (positions + 2 * padding - reach) // layer.stride + 1
        if layer.pool is not None and positions >= 2:
            positions //= 2
    return found
