"""Which operations are positively homogeneous, and along which axes they keep units apart.

An operation ``f`` commutes with a scale ``d > 0`` per unit when ``f(d ⊙ x) = d ⊙ f(x)``. What does
not stand here is a wall: absence of proof ends a group, never a guess.
"""

from __future__ import annotations

import inspect
import operator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

# One factor per element, which depends on its sign or on nothing of it, so they keep any axis.
# Dropout multiplies by 0 or 1/(1 − rate); the factor depends on the position, and of
# Dropout1d–3d on the unit.
_ELEMENTWISE: set[Any] = {
    *(nn.ReLU, nn.LeakyReLU, nn.PReLU, nn.RReLU, nn.Identity),
    *(nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d),
    *(F.relu, F.relu_, torch.relu, torch.relu_, "relu", "relu_"),
    *(F.leaky_relu, F.leaky_relu_, F.prelu, torch.prelu, F.rrelu, F.rrelu_),
    *(F.dropout, F.dropout1d, F.dropout2d, F.dropout3d),
    *(torch.abs, torch.neg, operator.abs, operator.neg, "abs", "abs_", "neg", "neg_"),
    *(torch.absolute, torch.negative, "absolute", "absolute_", "negative", "negative_"),
    *(torch.positive, operator.pos, "positive"),
    *("contiguous", torch.clone, "clone", torch.detach, "detach"),
}

# New tensors, which take the sizes of another one and nothing else.
NEW: frozenset[Any] = frozenset(
    {
        *("new_empty", "new_zeros", "new_ones", "new_full"),
        *(torch.empty_like, torch.zeros_like, torch.ones_like, torch.full_like),
        *(torch.rand_like, torch.randn_like, torch.randint_like),
    }
)
# They commute with scales if these move as well, which is not followed.
MOVING: frozenset[Any] = frozenset(
    {
        *(nn.PixelShuffle, nn.PixelUnshuffle, nn.ChannelShuffle, nn.Unflatten, nn.Fold, nn.Unfold),
        *(F.pixel_shuffle, F.pixel_unshuffle, F.channel_shuffle, F.fold, F.unfold),
        *(torch.pixel_shuffle, torch.pixel_unshuffle, torch.channel_shuffle),
        *(torch.chunk, torch.split, torch.unbind, torch.narrow, torch.movedim, torch.moveaxis),
        *("chunk", "split", "unbind", "narrow", "movedim", "moveaxis", "unflatten", "unfold"),
        *(torch.flip, torch.roll, torch.rot90, "flip", "roll", "rot90", torch.unflatten),
        *(torch.index_select, torch.gather, torch.take, "index_select", "gather", "take"),
        *(torch.tensor_split, "tensor_split", torch.repeat_interleave, "repeat_interleave"),
        *("repeat", torch.tile, "tile", "expand", torch.select, "select", "t", torch.t),
    }
)

# Of their bounds, thresholds and values each has to be 0 or None.
CLIPS: frozenset[Any] = frozenset(
    {
        *(torch.clamp, torch.clamp_, torch.clip, torch.clip_, "clamp", "clamp_", "clip", "clip_"),
        *(torch.clamp_min, torch.clamp_min_, "clamp_min", "clamp_min_"),
        *(torch.clamp_max, torch.clamp_max_, "clamp_max", "clamp_max_"),
        *(F.threshold, torch.threshold, torch.threshold_),
    }
)
# Methods that change the dtype, the device, or both; None: as their arguments say.
CASTS: dict[Any, torch.dtype | None] = {
    "half": torch.float16,
    "bfloat16": torch.bfloat16,
    "float": torch.float32,
    "double": torch.float64,
    **dict.fromkeys(("to", "cpu", "cuda")),
}

# A maximum or a mean over positions of one channel commutes with that channel's scale. The number
# is how many trailing axes the window covers: the channel axis has to stand right before them.
_POOLING: dict[Any, int] = {
    operation: axes
    for axes, operations in {
        1: (
            *(nn.MaxPool1d, nn.AvgPool1d, nn.AdaptiveMaxPool1d, nn.AdaptiveAvgPool1d),
            *(F.max_pool1d, torch.max_pool1d, F.adaptive_max_pool1d),
            *(F.avg_pool1d, F.adaptive_avg_pool1d),
        ),
        2: (
            *(nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveMaxPool2d, nn.AdaptiveAvgPool2d),
            *(F.max_pool2d, torch.max_pool2d, F.adaptive_max_pool2d),
            *(F.avg_pool2d, F.adaptive_avg_pool2d),
        ),
        3: (
            *(nn.MaxPool3d, nn.AvgPool3d, nn.AdaptiveMaxPool3d, nn.AdaptiveAvgPool3d),
            *(F.max_pool3d, torch.max_pool3d, F.adaptive_max_pool3d),
            *(F.avg_pool3d, F.adaptive_avg_pool3d),
        ),
    }.items()
    for operation in operations
}

# Of them those that are given how many positions there are to be.
ADAPTIVE: frozenset[Any] = frozenset(
    {
        *(nn.AdaptiveMaxPool1d, nn.AdaptiveMaxPool2d, nn.AdaptiveMaxPool3d),
        *(nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d),
        *(F.adaptive_max_pool1d, F.adaptive_max_pool2d, F.adaptive_max_pool3d),
        *(F.adaptive_avg_pool1d, F.adaptive_avg_pool2d, F.adaptive_avg_pool3d),
    }
)

# Interpolation between positions of one channel, whatever the mode: its axis is the second.
RESIZING: frozenset[Any] = frozenset(
    {nn.Upsample, nn.UpsamplingNearest2d, nn.UpsamplingBilinear2d, F.interpolate}
)

# Padding of trailing axes with the channel's own values or with zeros; of ConstantPad only zeros.
PADDING: dict[Any, int] = {
    **dict.fromkeys((nn.ReflectionPad1d, nn.ReplicationPad1d, nn.ZeroPad1d, nn.CircularPad1d), 1),
    **dict.fromkeys((nn.ReflectionPad2d, nn.ReplicationPad2d, nn.ZeroPad2d, nn.CircularPad2d), 2),
    **dict.fromkeys((nn.ReflectionPad3d, nn.ReplicationPad3d, nn.ZeroPad3d, nn.CircularPad3d), 3),
    nn.ConstantPad1d: 1,
    nn.ConstantPad2d: 2,
    nn.ConstantPad3d: 3,
}

# Homogeneous in all operands together: they have to carry the same scales.
SUMS: frozenset[Any] = frozenset(
    {
        *(operator.add, operator.iadd, operator.sub, operator.isub),
        *(torch.add, torch.sub, torch.subtract, "add", "add_", "sub", "sub_"),
        *(torch.maximum, torch.minimum, "maximum", "minimum"),
    }
)
# Homogeneous in one operand while the other is fixed; a quotient in its numerator.
PRODUCTS: frozenset[Any] = frozenset(
    {operator.mul, operator.imul, torch.mul, torch.multiply, "mul", "mul_"}
)
QUOTIENTS: frozenset[Any] = frozenset(
    {operator.truediv, operator.itruediv, torch.div, torch.divide, "div", "div_"}
)
CONCATENATIONS: frozenset[Any] = frozenset({torch.cat, torch.concat, torch.concatenate})
STACKS: frozenset[Any] = frozenset({torch.stack})
# Over whole axes, given by ``dim``.
REDUCTIONS: frozenset[Any] = frozenset(
    {torch.mean, torch.sum, torch.amax, torch.amin, "mean", "sum", "amax", "amin"}
)
# Of two values, or over one axis: then with the positions beside the values.
EXTREMA: frozenset[Any] = frozenset({torch.max, torch.min, "max", "min"})
PERMUTATIONS: frozenset[Any] = frozenset(
    {torch.permute, "permute", torch.transpose, torch.swapaxes, "transpose", "swapaxes"}
)
RESHAPES: frozenset[Any] = frozenset({torch.reshape, "reshape", "view"})
SQUEEZES: frozenset[Any] = frozenset({torch.squeeze, "squeeze"})
UNSQUEEZES: frozenset[Any] = frozenset({torch.unsqueeze, "unsqueeze"})

CONVOLUTIONS: dict[type[nn.Module], int] = {nn.Conv1d: 1, nn.Conv2d: 2, nn.Conv3d: 3}
TRANSPOSED: dict[type[nn.Module], int] = {
    nn.ConvTranspose1d: 1,
    nn.ConvTranspose2d: 2,
    nn.ConvTranspose3d: 3,
}


class BatchNorm(nn.modules.batchnorm._BatchNorm):
    """What ``F.batch_norm`` computes, for any number of positions behind the second axis."""

    def _check_input_dim(self, input: Tensor) -> None:
        pass


BATCH_NORMS: frozenset[type[nn.Module]] = frozenset(
    {nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm, BatchNorm}
)

# Normalize over a sample, not a batch; their weight and bias carry a scale as BatchNorm's do.
LAYER_NORMS: frozenset[type[nn.Module]] = frozenset(
    {
        *(nn.LayerNorm, nn.RMSNorm, nn.GroupNorm),
        *(nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d),
    }
)

# Whose weight and bias scale.
LAYERS: frozenset[type[nn.Module]] = frozenset(
    {nn.Linear, *CONVOLUTIONS, *TRANSPOSED, *BATCH_NORMS, *LAYER_NORMS}
)

# Where channels stand, whether or not there is a batch; batches of the others vary.
CHANNEL_AXES: dict[type[nn.Module], int] = {
    nn.LayerNorm: -1,
    nn.RMSNorm: -1,
    nn.InstanceNorm1d: -2,
    nn.InstanceNorm2d: -3,
    nn.InstanceNorm3d: -4,
    nn.BatchNorm2d: -3,
    nn.BatchNorm3d: -4,
}

_OVERLOADS = (torch._ops.OpOverload, torch._ops.OpOverloadPacket)

# What users vouch for: operation → trailing axes it mixes, 0 for elementwise ones.
_REGISTERED: dict[Any, int] = {}


def register_homogeneous(operation: Any, *, positions: int = 0) -> Any:
    """Vouch that ``operation`` commutes with a positive scale per hidden unit.

    It has to satisfy ``f(d ⊙ x) = d ⊙ f(x)`` for every ``d > 0`` with one entry per unit, in
    train and in eval mode, and keep the units' axis where it is. It is not looked into any more:
    nothing inside it is rescaled. From then on :func:`enorm.trace` lets groups pass through it.

    Args:
        operation: a subclass of ``nn.Module`` with one input, or a function of one tensor, named
            by its global name in the code that calls it.
        positions: how many trailing axes it mixes, such as 2 for a blur of images; the channel
            axis then has to stand right before them. 0: it acts on each element alone.

    Returns:
        ``operation``, so that this can be used as a decorator.

    Raises:
        TypeError: ``operation`` is neither.
        ValueError: ``positions`` is negative.

    Formula: positive homogeneity per unit, Stock et al. 2019, §3.1.
    """
    is_module = isinstance(operation, type) and issubclass(operation, nn.Module)
    if not is_module and not _is_recordable(operation):
        hint = (
            "pass the class of a module, not the module"
            if isinstance(operation, nn.Module) or not callable(operation)
            else "put it into a function of its own (def) and register that"
        )
        raise TypeError(
            f"operation must be a subclass of nn.Module or a function, got {operation!r}: {hint}"
        )
    if not (isinstance(positions, int) and positions >= 0):
        raise ValueError(f"positions must be a whole number of at least 0, got {positions!r}")
    _REGISTERED[operation] = positions
    return operation


def _is_recordable(operation: Any) -> bool:
    """Whether ``torch.fx`` can put a call of it into a graph, and still trace other code then."""
    if inspect.isfunction(operation):
        return True
    if not (inspect.isroutine(operation) or isinstance(operation, _OVERLOADS)):
        return False
    graph = fx.Graph()
    graph.output(graph.call_function(operation, (graph.placeholder("x"),)))
    try:
        fx.GraphModule(nn.Module(), graph)
    except Exception:
        # What it raises depends on where the function comes from.
        return False
    return True


def registered_modules() -> tuple[type[nn.Module], ...]:
    """Module classes that users vouch for."""
    return tuple(one for one in _REGISTERED if isinstance(one, type))


def registered_functions() -> tuple[Any, ...]:
    """Python functions that users vouch for: ``torch.fx`` would look into them."""
    return tuple(
        one for one in _REGISTERED if inspect.isroutine(one) and not inspect.isbuiltin(one)
    )


def is_registered(operation: nn.Module | Any) -> bool:
    """Whether a user vouches for ``operation``."""
    return key_of(operation) in _REGISTERED


def sizes_of(module: nn.Module, weight: Tensor) -> tuple[int, int]:
    """Input and output features or channels of a Linear or a convolution, from its weight."""
    groups: int = getattr(module, "groups", 1)
    if isinstance(module, tuple(TRANSPOSED)):
        return weight.shape[0], weight.shape[1] * groups
    return weight.shape[1] * groups, weight.shape[0]


def key_of(operation: nn.Module | Any) -> Any:
    """How the tables name ``operation``: a module's class, else what was called."""
    return type(operation) if isinstance(operation, nn.Module) else operation


def is_elementwise(operation: nn.Module | Any) -> bool:
    """Whether ``operation`` (a module, a function or a method's name) keeps every axis."""
    key = key_of(operation)
    return key in _ELEMENTWISE or _REGISTERED.get(key) == 0 or _is_stochastic_depth(key)


def pooled_axes(operation: nn.Module | Any) -> int | None:
    """How many trailing axes ``operation`` pools, or None if it is no pooling."""
    key = key_of(operation)
    return _REGISTERED.get(key) or _POOLING.get(key)


def _is_stochastic_depth(key: Any) -> bool:
    """torchvision's: it multiplies a sample, or all of a batch, by 0 or 1/(1 − rate)."""
    name = f"{getattr(key, '__module__', '')}.{getattr(key, '__qualname__', '')}"
    return name in (
        "torchvision.ops.stochastic_depth.stochastic_depth",
        "torchvision.ops.stochastic_depth.StochasticDepth",
    )
