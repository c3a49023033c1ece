"""How far rounding may take a network's outputs, by running error analysis."""

from __future__ import annotations

import contextlib
import math
import operator
from collections.abc import Iterator
from dataclasses import dataclass
from numbers import Integral
from typing import Any, NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.func import functional_call
from torch.utils._pytree import tree_leaves

from enorm._examples import Arguments, Inputs
from enorm._functional import HOOKED, owner_of
from enorm._graph import AUTOCAST, check_module, set_mode, symbolic_trace
from enorm._homogeneous import (
    BATCH_NORMS,
    CONCATENATIONS,
    CONVOLUTIONS,
    EXTREMA,
    LAYERS,
    PADDING,
    PERMUTATIONS,
    PRODUCTS,
    QUOTIENTS,
    REDUCTIONS,
    RESHAPES,
    SQUEEZES,
    STACKS,
    SUMS,
    TRANSPOSED,
    UNSQUEEZES,
    is_elementwise,
    is_registered,
    pooled_axes,
)
from enorm._sharded import own_hooks
from enorm._unsupported import UnsupportedModel
from enorm._untouched import untouched

# What is random in train mode.
_DROPOUTS = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d)
_DROPOUT_FUNCTIONS = (F.dropout, F.dropout1d, F.dropout2d, F.dropout3d)
# How entries of one value become those of another, with nothing computed.
_FLATTENS = frozenset({torch.flatten, "flatten"})
_MOVES = RESHAPES | PERMUTATIONS | SQUEEZES | UNSQUEEZES | _FLATTENS | {operator.getitem}
_LARGER = EXTREMA | {torch.maximum, torch.minimum, "maximum", "minimum"}
_WHOLE = frozenset({torch.amax, torch.amin, "amax", "amin"})


def check_bound_options(rewrites: Any, training: Any) -> None:
    """Raise ValueError or TypeError unless these are a whole number from 0 on and a bool."""
    if not (isinstance(rewrites, Integral) and int(rewrites) >= 0):
        raise ValueError(f"rewrites must be a whole number of at least 0, got {rewrites!r}")
    if not isinstance(training, bool):
        raise TypeError(f"training must be True or False, got {training!r}")


def error_bound(
    model: nn.Module, inputs: Any, *, rewrites: int = 1, training: bool = False
) -> Tensor:
    """How far rounding may take each output from the exact function.

    Every value v of the network is carried with a bound e of its error (Higham 2002, §3.3). With
    unit roundoff u of the dtype, ``u_acc = min(u, 2^-24)`` in which narrower dtypes accumulate,
    and n terms in a sum, a layer's stored weights carry ``4·rewrites`` roundings (two scales, two
    products) and its output ``n + 2`` more:

        layer           e' = |W| e + γ_n (|W| (|v| + e) + |b|),
        ReLU, pooling   e' = e, pooled as v is; a sum or a slope adds its own roundings,
        extrema         e' = the largest e among the values compared,
        sum of values   e' = e_1 + e_2 + u (|v_1| + e_1 + |v_2| + e_2),
        product         e' = |v_1| e_2 + |v_2| e_1 + e_1 e_2 + 2 u (|v_1| + e_1) (|v_2| + e_2),
        BatchNorm       e' = |g|/s e + γ_8 (|g|/s (|v| + e + |m|) + |β|), with eval's statistics,
        γ_n = (n + 2) u_acc / (1 − (n + 2) u_acc) + (4·rewrites + 2) u.

    In train mode BatchNorm's mean m and ``s = sqrt(var + eps)`` are those of the N values of a
    channel. Both are 1-Lipschitz in them, the mean in the mean norm and s in the root mean square:

        δm = mean(e) + (N + 2) u_acc mean(|v| + e),
        δs = rms(e) + (N + 8) u_acc σ sqrt(σ² + m²) / s       (Chan, Golub, LeVeque 1983),
        e' = |g| (e + δm + |v − m|/s δs) / (s − δs) + γ_8 (|g| (|v| + e + |m|) / (s − δs) + |β|).

    The bound is at most ``((1+γ)^q − 1) f_{|W|,|b|}(|x|)`` of the network with absolute parameters,
    and like that one invariant under rescaling up to η, the dtype's smallest subnormal, which is
    added where a weight, a product or a sum may underflow. v stands for the exact value; 1 % more
    covers that it is itself computed in float64. What depends on no input is taken as the network
    computes it.

    Args:
        model: the network; neither it nor its BatchNorm statistics are changed.
        inputs: a tensor, a tuple of tensors, or tensors by the arguments' names.
        rewrites: how often rescaling has written the weights.
        training: bound the function of train mode instead of that of eval mode.

    Returns:
        float64, the shape of the output.

    Raises:
        UnsupportedModel: an operation for which no bound is known, or a BatchNorm whose batch
            varies less than rounding; the message names it.
        TypeError: the model is no module, the inputs are no tensors, or ``training`` no bool.
        ValueError: ``rewrites`` is no whole number of at least 0.
    """
    check_module(model)
    check_bound_options(rewrites, training)
    arguments = Arguments.of(inputs)
    if not list(model.children()) and len(arguments.in_order) == 1:
        # A model that is itself a layer would be traced into.
        model = nn.Sequential(model)
    with torch.no_grad(), in_mode(model, training):
        graph_module = symbolic_trace(model, arguments)
        if graph_module.meta[AUTOCAST]:
            raise UnsupportedModel("no rounding bound is known for operations under autocast")
        interpreter = _RunningError(graph_module, rewrites)
        with untouched(model) as randomness:
            result = interpreter.run(*interpreter.in_order(arguments.named(model)))
            drawn = randomness.moved()
        if drawn:
            raise UnsupportedModel(
                f"no rounding bound is known for numbers drawn from {' and '.join(drawn)}"
            )
    if not isinstance(result, _Bounded):
        raise UnsupportedModel("no rounding bound is known for outputs that are not one tensor")
    return 1.01 * result.error


def _positional(args: Any, kwargs: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """What is operated on as the first argument, where the call gives it by name."""
    named = dict(kwargs)
    for name in ("input", "tensors"):
        if not args and name in named:
            args = (named.pop(name),)
    return tuple(args), named


@contextlib.contextmanager
def in_mode(model: nn.Module, training: bool) -> Iterator[None]:
    """Train or eval mode inside, each module's own mode restored after."""
    modes = {module: module.training for module in model.modules()}
    try:
        set_mode(model, training)
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode


@dataclass(frozen=True)
class _Bounded:
    """A float64 tensor, and entry by entry how far the computed one may be from it."""

    value: Tensor
    error: Tensor

    @classmethod
    def exact(cls, value: Tensor) -> _Bounded:
        wide = value.detach().double().clone()
        return cls(wide, torch.zeros_like(wide))

    @property
    def magnitude(self) -> Tensor:
        return self.value.abs() + self.error


def _has_bounded(values: Any) -> bool:
    """Whether one of them is bounded, or in a list; what an extremum returns is no list."""

    def is_list(one: Any) -> bool:
        return isinstance(one, (list, tuple)) and not isinstance(one, _Extrema)

    return any(_has_bounded(one) if is_list(one) else isinstance(one, _Bounded) for one in values)


class _Extrema(NamedTuple):
    """What a maximum or a minimum over an axis returns."""

    values: _Bounded
    indices: Tensor


class _RunningError(fx.Interpreter):
    """Runs a graph on bounded values."""

    def __init__(self, graph_module: fx.GraphModule, rewrites: int) -> None:
        super().__init__(graph_module, garbage_collect_values=False)
        # Errors are raised as they are, without the graph's own words around them.
        self.extra_traceback = False
        self.rewrites = rewrites
        # Elementwise operations round in the dtype of the layers around them.
        dtypes = [value.dtype for value in graph_module.parameters() if value.is_floating_point()]
        self.dtype = dtypes[0] if dtypes else torch.float64
        self.owners = {node.target: owner_of(node) for node in graph_module.graph.nodes}
        self._hooked = {node.target for node in graph_module.graph.nodes if HOOKED in node.meta}

    def in_order(self, inputs: Inputs) -> list[_Bounded]:
        """Inputs as they stand in the graph, taken to be exact."""
        nodes = self.graph.find_nodes(op="placeholder")
        return [_Bounded.exact(inputs[str(node.target)]) for node in nodes]

    def call_module(self, target: Any, args: Any, kwargs: Any) -> Any:
        module: Any = self.fetch_attr(target)
        args, kwargs = _positional(args, kwargs)
        name = f"{self.owners[target]} ({type(module).__name__})"
        # It may read a parameter or a buffer.
        args = tuple(_Bounded.exact(one) if isinstance(one, Tensor) else one for one in args)
        kind = type(module)
        if own_hooks(module) or target in self._hooked:
            raise UnsupportedModel(
                f"no rounding bound is known for {name}, which has forward hooks"
            )
        if kind in LAYERS and "weight" not in module._parameters:
            raise UnsupportedModel(f"no rounding bound is known for {name} without its weight")
        if args and (kind is nn.Linear or kind in CONVOLUTIONS):
            return self._layer(module, args[0])
        if kind in TRANSPOSED and len(args) == 1 and not kwargs:
            return self._layer(module, args[0])
        if args and kind in BATCH_NORMS:
            return self._batchnorm(name, module, args[0])
        if kind is nn.Flatten or (kind in PADDING and getattr(module, "value", 0) == 0):
            return self._moved(module, args, kwargs)
        if kind is nn.PReLU:
            return self._prelu(module.weight, args[0])
        random = module.training and (
            kind is nn.RReLU or (isinstance(module, _DROPOUTS) and module.p > 0)
        )
        return self._operation(module, name, module, args, kwargs, random=random)

    def call_function(self, target: Any, args: Any, kwargs: Any) -> Any:
        args, kwargs = _positional(args, kwargs)
        if target in CONCATENATIONS or target in STACKS:
            return self._concatenated(target, args, kwargs)
        if target in (F.prelu, torch.prelu) and len(args) == 2 and isinstance(args[1], Tensor):
            return self._prelu(args[1], args[0])
        if target is getattr and args[1] == "dtype" and isinstance(args[0], _Bounded):
            # What is made in it is made as the network makes it.
            return self.dtype
        if target is getattr or not _has_bounded((*args, *kwargs.values())):
            return self._plain(target, args, kwargs)
        if target in _MOVES:
            return self._moved(target, args, kwargs)
        if target is F.pad and not kwargs.get("value"):
            return self._moved(target, args, kwargs)
        if (found := self._arithmetic(target, target, args, kwargs)) is not None:
            return found
        # Recorded calls of Python functions carry every option by its name.
        random = target in _DROPOUT_FUNCTIONS and kwargs["training"]
        random |= target.__name__ == "stochastic_depth" and (*args, *kwargs.values())[-1]
        return self._operation(target, target.__name__, target, args, kwargs, random=random)

    def call_method(self, target: Any, args: Any, kwargs: Any) -> Any:
        def call(value: Any, *rest: Any, **named: Any) -> Any:
            return getattr(value, target)(*rest, **named)

        args, kwargs = _positional(args, kwargs)
        if target in ("size", "dim") or not _has_bounded((*args, *kwargs.values())):
            return self._plain(call, args, kwargs)
        if target in _MOVES:
            return self._moved(call, args, kwargs)
        if (found := self._arithmetic(target, call, args, kwargs)) is not None:
            return found
        return self._operation(target, target, call, args, kwargs)

    def _plain(self, run: Any, args: Any, kwargs: Any) -> Any:
        """What is asked of a tensor, such as its size."""
        return run(*[one.value if isinstance(one, _Bounded) else one for one in args], **kwargs)

    def _moved(self, run: Any, args: Any, kwargs: Any) -> _Bounded:
        """Entries change places only."""
        bounded, *rest = args
        if any(isinstance(one, (_Bounded, Tensor)) for one in tree_leaves(rest)):
            raise UnsupportedModel("no rounding bound is known for an index that is a tensor")
        # A view needs both to lie in memory as the network's own value would.
        moved = (run(one.contiguous(), *rest, **kwargs) for one in (bounded.value, bounded.error))
        return _Bounded(*moved)

    def _operation(
        self,
        operation: Any,
        name: str,
        run: Any,
        args: Any,
        kwargs: Any,
        *,
        random: bool = False,
    ) -> _Bounded:
        axes = pooled_axes(operation)
        known = is_elementwise(operation) or axes is not None
        if random or not args or not known or is_registered(operation):
            why = " in train mode" if random else ""
            raise UnsupportedModel(f"no rounding bound is known for {name}{why}")
        bounded, *rest = args
        before = bounded.magnitude
        positions = math.prod(before.shape[-axes:]) if axes else 0
        value = run(bounded.value, *rest, **kwargs)
        if not isinstance(value, Tensor):
            raise UnsupportedModel(f"no rounding bound is known for {name} with these options")
        if axes is not None:
            # A maximum is off by no more than the largest error in its window.
            error = run(bounded.error, *rest, **kwargs)
            return _Bounded(value, error + self._gamma(positions) * run(before, *rest, **kwargs))
        slope = getattr(operation, "negative_slope", None)
        if isinstance(operation, nn.RReLU):
            slope = max(abs(operation.lower), abs(operation.upper))
        if operation is F.leaky_relu:
            slope = kwargs["negative_slope"]
        error = bounded.error
        if slope is not None:
            steepest = max(1.0, abs(slope))
            error = steepest * (error + self._unit() * before)
        if value is bounded.value:
            # In place: whoever reads the operand later reads this result.
            error = bounded.error.copy_(error)
        return _Bounded(value, error)

    def _arithmetic(
        self, operation: Any, run: Any, args: Any, kwargs: Any
    ) -> _Bounded | _Extrema | None:
        """Sums, products, extrema and reductions; None for anything else."""
        options = (*args[1:], *kwargs.values())
        along = options and not any(isinstance(one, (_Bounded, Tensor)) for one in options)
        if operation in EXTREMA and along:
            found = run(args[0].value, *args[1:], **kwargs)
            error = torch.amax(args[0].error, *args[1:], **kwargs)
            return _Extrema(_Bounded(found.values, error), found.indices)
        if operation in REDUCTIONS and args and isinstance(args[0], _Bounded):
            value = run(args[0].value, *args[1:], **kwargs)
            if operation in _WHOLE:
                # Also a minimum is off by no more than the largest error.
                return _Bounded(value, torch.amax(args[0].error, *args[1:], **kwargs))
            error = run(args[0].error, *args[1:], **kwargs)
            terms = args[0].value.numel() // max(value.numel(), 1)
            rounding = self._gamma(terms) * run(args[0].magnitude, *args[1:], **kwargs)
            return _Bounded(value, error + rounding)
        of_two = SUMS | PRODUCTS | QUOTIENTS | EXTREMA
        if operation not in of_two or kwargs or len(args) != 2:
            return None
        first, second = (
            one if isinstance(one, _Bounded) else _Bounded.exact(torch.as_tensor(one))
            for one in args
        )
        # What is overwritten is needed as it was.
        v1, v2 = first.value.clone(), second.value
        m1, m2 = v1.abs() + first.error, second.magnitude
        if operation in SUMS | EXTREMA:
            error = first.error + second.error + self._unit() * (m1 + m2)
            if operation in _LARGER:
                error = torch.maximum(first.error, second.error)
        elif operation in PRODUCTS:
            error = v1.abs() * second.error + v2.abs() * first.error + first.error * second.error
            error = error + 2 * self._unit() * m1 * m2 + self._tiny()
        elif isinstance(args[1], (int, float)):
            error = (first.error + 2 * self._unit() * m1) / abs(args[1]) + self._tiny()
        else:
            return None
        value = run(first.value, second.value if isinstance(args[1], _Bounded) else args[1])
        if value is first.value:
            # In place: whoever reads the operand later reads this result.
            error = first.error.copy_(error)
        return _Bounded(value, error)

    def _concatenated(self, run: Any, args: Any, kwargs: Any) -> _Bounded:
        parts = [one if isinstance(one, _Bounded) else _Bounded.exact(one) for one in args[0]]
        return _Bounded(
            run([part.value for part in parts], *args[1:], **kwargs),
            run([part.error for part in parts], *args[1:], **kwargs),
        )

    def _prelu(self, weight: Tensor, bounded: _Bounded) -> _Bounded:
        own = weight.detach().double()
        slopes = own.view(1, -1, *[1] * (bounded.value.dim() - 2)) if own.numel() > 1 else own
        error = bounded.error + self._unit() * bounded.magnitude
        return _Bounded(F.prelu(bounded.value, own), slopes.abs().clamp(min=1) * error)

    def _layer(self, module: nn.Module, bounded: _Bounded) -> _Bounded:
        own = {
            name: parameter.detach().double()
            for name, parameter in module.named_parameters(recurse=False)
        }
        self.dtype = module.get_parameter("weight").dtype
        fan_in = math.prod(own["weight"].shape[1:])
        if type(module) in TRANSPOSED:
            groups = cast(nn.ConvTranspose2d, module).groups
            fan_in = own["weight"].shape[0] // groups * math.prod(own["weight"].shape[2:])
        gamma, tiny = self._gamma(fan_in), self._tiny()
        weight = own["weight"].abs()
        passed = {"weight": weight} | (
            {"bias": torch.zeros_like(own["bias"])} if "bias" in own else {}
        )
        rounded = {name: gamma * parameter.abs() + tiny for name, parameter in own.items()}
        error: Tensor = functional_call(module, passed, bounded.error)
        error += functional_call(module, rounded, bounded.magnitude) + (fan_in + 2) * tiny
        return _Bounded(functional_call(module, own, bounded.value), error)

    def _batchnorm(self, name: str, module: Any, bounded: _Bounded) -> _Bounded:
        value = bounded.value
        axes = [axis for axis in range(value.dim()) if axis != 1]

        def along(channels: Tensor) -> Tensor:
            return channels.detach().double().view(-1, *[1] * (value.dim() - 2))

        one = torch.ones(module.num_features, device=value.device)
        weight = along(one if module.weight is None else module.weight)
        bias = along(0 * one if module.bias is None else module.bias)
        moved, widened, slack = bounded.error, torch.zeros(()), 1.0
        if module.training or module.running_mean is None:
            terms = value.numel() // value.shape[1]
            u = min(self._unit(), 2.0**-24)
            mean = value.mean(axes, keepdim=True)
            variance = value.var(axes, correction=0, keepdim=True)
            s = (variance + module.eps).sqrt()
            moved = moved + bounded.error.mean(axes, keepdim=True)
            moved = moved + (terms + 2) * u * bounded.magnitude.mean(axes, keepdim=True)
            sums = (terms + 8) * u * (variance * (variance + mean.square())).sqrt() / s
            widened = bounded.error.square().mean(axes, keepdim=True).sqrt() + sums
            slack = s / (s - widened)
            if not bool((widened < s).all()):
                raise UnsupportedModel(
                    f"no rounding bound is known for {name}: its batch varies less than rounding"
                )
        else:
            mean = along(module.running_mean)
            s = (along(module.running_var) + module.eps).sqrt()
        factor = weight.abs() / s * slack
        normalized = (value - mean) / s
        error = factor * (moved + normalized.abs() * widened)
        rounding = factor * (bounded.magnitude + mean.abs()) + bias.abs()
        error = error + self._gamma(8) * rounding + self._tiny()
        return _Bounded(weight * normalized + bias, error)

    def _unit(self) -> float:
        return torch.finfo(self.dtype).eps / 2

    def _tiny(self) -> float:
        info = torch.finfo(self.dtype)
        return info.smallest_normal * info.eps

    def _gamma(self, terms: int) -> float:
        u = self._unit()
        accumulated = (terms + 2) * min(u, 2.0**-24)
        return accumulated / (1 - accumulated) + (4 * self.rewrites + 2) * u
