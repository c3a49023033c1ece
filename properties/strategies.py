"""Hypothesis strategies that draw what the implementation under test declares to accept.

Smaller networks come first, so that a failure shrinks to one.
"""

from __future__ import annotations

from typing import Literal

from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy

from properties.implementation import current
from properties.specs import Hidden, Net

_ABLE = current().capabilities


def exponents(*values: float) -> SearchStrategy[float]:
    """Those of ``values`` that the implementation takes."""
    return st.sampled_from([p for p in values if _ABLE.p is None or p in _ABLE.p])


def dtypes_of(*names: str) -> SearchStrategy[str]:
    """Those of ``names`` that the implementation takes."""
    return st.sampled_from([name for name in names if name in _ABLE.dtypes])


SEEDS = st.integers(0, 2**31 - 2)
P_NORMS = exponents(2.0, 1.0, 3.0, 0.5, 1.5, 6.0)
C_FACTORS = st.sampled_from([1.0, 1.2, 0.8, 2.0] if _ABLE.c else [1.0])
ORDERS = st.sampled_from(_ABLE.orders)
# Never drawn where none is declared, for such properties are not applicable then.
SOLVERS = st.sampled_from(_ABLE.solvers or ("none",))
WIDE_DTYPES = dtypes_of("float64", "float32")
ALL_DTYPES = dtypes_of("float64", "float32", "bfloat16", "float16")

_POOLS: tuple[Literal["max", "avg"] | None, ...] = (None, "max", "avg")

# Half precision has few decades to spread over before weights underflow.
_DECADES = {"float64": 6.0, "float32": 4.0, "bfloat16": 4.0, "float16": 0.5}


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
    spatial = {2, 1, 3} if _ABLE.mixed else set(_ABLE.convolution)
    axes = draw(st.sampled_from([0, 0, 0, *spatial]))
    head: Literal["linear", "conv"] = "linear"
    if axes in _ABLE.convolution:
        head = "conv" if not _ABLE.mixed else draw(st.sampled_from(["linear", "conv"]))
    depth = draw(st.integers(1, max_hidden if axes == 0 else 3))
    convolutions = draw(st.integers(1, depth)) if axes else 0
    if head == "conv":
        convolutions = depth
    dtype = draw(dtypes)
    # A kernel of 3 with dilation 2 and padding 0 needs five positions; deeper layers need more.
    positions = draw(st.integers(5, 8 if axes < 3 else 6)) if axes else 6
    hidden, left = [], positions
    for index in range(depth):
        out = draw(st.integers(1, 6 if axes == 0 else 4))
        kernel = stride = dilation = 1
        padding = 0
        pool: Literal["max", "avg"] | None = None
        if index < convolutions:
            kernel = draw(st.sampled_from([1, 2, 3]))
            stride = draw(st.sampled_from([1, 1, 2]))
            dilation = draw(st.sampled_from([1, 1, 2]))
            # Enough padding that at least one position remains.
            lowest = max(0, -(-(dilation * (kernel - 1) + 1 - left) // 2))
            padding = draw(st.integers(lowest, max(lowest, 2)))
            left = (left + 2 * padding - dilation * (kernel - 1) - 1) // stride + 1
            # Torch has no AvgPool3d in half precision on a CPU.
            half = dtype in ("bfloat16", "float16")
            pool = draw(st.sampled_from(_POOLS[:2] if half and axes == 3 else _POOLS))
            if pool is not None and left >= 2:
                left //= 2
        else:
            kernel = 0
        units = st.lists(st.integers(0, out - 1), max_size=2, unique=True).map(tuple)
        hidden.append(
            Hidden(
                out=out,
                kernel=kernel,
                stride=stride,
                padding=padding,
                dilation=dilation,
                bias=_ABLE.biases and draw(st.booleans()),
                batchnorm=batchnorm and draw(st.booleans()),
                slope=draw(st.sampled_from([0.0, 0.1, -0.3])),
                pool=pool,
                dead_in=draw(units) if dead and draw(st.booleans()) else (),
                dead_out=draw(units) if dead and draw(st.booleans()) else (),
            )
        )
    limit = min(max_decades, _DECADES[dtype])
    return Net(
        inputs=draw(st.integers(1, 5)),
        hidden=tuple(hidden),
        outputs=draw(st.integers(1, 4)),
        positions=positions,
        axes=axes,
        head=head,
        decades=draw(st.sampled_from([0.0, limit / 4, limit])),
        input_scale=draw(st.sampled_from([1.0, 1.0, 255.0, 1e-3])),
        dtype=dtype,
        seed=draw(SEEDS),
    )
