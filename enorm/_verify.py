"""Was the function kept? The measured error beside what rounding alone may cause."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.func import functional_call

from enorm._graph import UnsupportedModel, symbolic_trace
from enorm._homogeneous import BATCH_NORMS, CONVOLUTIONS, is_elementwise, pooled_axes


@dataclass(frozen=True)
class Verification:
    """Result of :func:`verify`.

    Attributes:
        error: largest absolute difference of an output.
        bound: what rounding may cause at that output; None if no bound is known for the network.
        ratio: largest difference in units of its own bound; None without a bound.
        reason: why there is no bound, else None.
    """

    error: float
    bound: float | None
    ratio: float | None
    reason: str | None = None

    @property
    def ok(self) -> bool | None:
        """Whether every output is within its bound; None if no bound is known."""
        return None if self.ratio is None else self.ratio <= 1


def verify(before: nn.Module, after: nn.Module, inputs: Any, *, rewrites: int = 1) -> Verification:
    """Compare the outputs of two models that should compute the same function, in eval mode.

    Args:
        before: the model before rescaling, for instance a ``copy.deepcopy``.
        after: the model after it.
        inputs: a tensor or a tuple of tensors, in the models' dtype and on their device.
        rewrites: how often rescaling has written the weights of ``after`` since ``before``.

    Raises:
        ValueError: the outputs differ in shape or are not single tensors.
    """
    arguments = inputs if isinstance(inputs, tuple) else (inputs,)
    with torch.no_grad(), _evaluating(before), _evaluating(after):
        outputs = before(*arguments), after(*arguments)
        for output in outputs:
            if not isinstance(output, Tensor) or output.shape != outputs[0].shape:
                raise ValueError("before and after must return one tensor each, of equal shape")
        difference = (outputs[0].double() - outputs[1].double()).abs().flatten()
        worst = int(difference.nan_to_num(math.inf).argmax())
        try:
            bounds = error_bound(before, arguments, rewrites=0).flatten()
            bounds += error_bound(after, arguments, rewrites=rewrites).flatten()
        except UnsupportedModel as error:
            return Verification(difference[worst].item(), None, None, str(error))
    ratios = torch.where(difference == 0, 0.0, difference / bounds).nan_to_num(math.inf)
    return Verification(difference[worst].item(), bounds[worst].item(), ratios.amax().item())


def error_bound(model: nn.Module, inputs: Any, *, rewrites: int = 1) -> Tensor:
    """How far rounding may take each output from the exact function, in eval mode.

    With unit roundoff u of the dtype, ``u₃₂`` of float32 in which narrower dtypes accumulate, and
    fan-in n of layer k, a layer's stored weights carry ``4·rewrites`` roundings (two scales, two
    products) and its output ``n + 2`` more (Higham 2002, §3.1):

        |computed − exact| ≤ Π_k (1 + γ_k) · f_{|W| + η, |b| + η}(|x|) − f_{|W|, |b|}(|x|),
        γ_k = (n + 2) u_acc / (1 − (n + 2) u_acc) + (4·rewrites + 2) u.

    ``f_{|W|, |b|}`` is the network with absolute parameters, evaluated in float64; every operation
    that :func:`enorm.trace` carries a scale through is monotone on it, so layers compose. η, the
    dtype's smallest subnormal, covers underflow of weights and of sums. Products of factors are
    rounded up by 1 %, which covers what is of second order in u. The first f is invariant under
    rescaling up to η.

    Args:
        model: the network.
        inputs: a tensor or a tuple of tensors.
        rewrites: how often rescaling has written the weights.

    Returns:
        float64, the shape of the output.

    Raises:
        UnsupportedModel: an operation for which no bound is known; the message names it.
    """
    arguments = inputs if isinstance(inputs, tuple) else (inputs,)
    absolute = tuple(value.detach().double().abs() for value in arguments)
    with torch.no_grad(), _evaluating(model):
        graph_module = symbolic_trace(model)
        upper = _AbsoluteNetwork(graph_module, rewrites).run(*absolute)
        exact = _AbsoluteNetwork(graph_module, None).run(*absolute)
    return 1.01 * (upper - exact)  # type: ignore[no-any-return]


class _AbsoluteNetwork(fx.Interpreter):
    """Runs a network with absolute parameters in float64; ``rewrites=None`` leaves out rounding."""

    def __init__(self, graph_module: fx.GraphModule, rewrites: int | None) -> None:
        super().__init__(graph_module)
        self.rewrites = rewrites

    def call_module(self, target: Any, args: Any, kwargs: Any) -> Any:
        module = self.fetch_attr(target)
        if type(module) is nn.Linear or type(module) in CONVOLUTIONS:
            return self._layer(module, args[0])
        if type(module) in BATCH_NORMS:
            return self._batchnorm(module, args[0])
        if type(module) is nn.Flatten:
            return module(*args)
        return self._operation(module, f"{target} ({type(module).__name__})", module, args, kwargs)

    def call_function(self, target: Any, args: Any, kwargs: Any) -> Any:
        if target in (torch.flatten, torch.reshape, getattr) or not isinstance(args[0], Tensor):
            return target(*args, **kwargs)
        return self._operation(target, target.__name__, target, args, kwargs)

    def call_method(self, target: Any, args: Any, kwargs: Any) -> Any:
        def call(value: Any, *rest: Any, **named: Any) -> Any:
            return getattr(value, target)(*rest, **named)

        if target in ("flatten", "reshape", "view", "size", "dim"):
            return call(*args, **kwargs)
        return self._operation(target, target, call, args, kwargs)

    def _operation(self, operation: Any, name: str, run: Any, args: Any, kwargs: Any) -> Any:
        value = args[0]
        if is_elementwise(operation):
            slope = getattr(operation, "negative_slope", None)
            if operation is nn.functional.leaky_relu:
                slope = kwargs.get("negative_slope", args[1] if len(args) > 1 else 0.01)
            grow = 1.0 if slope is None else max(1.0, abs(slope)) * (1 + self._u(value))
            return value * grow
        axes = pooled_axes(operation)
        if axes is None:
            raise UnsupportedModel(f"no rounding bound is known for {name}")
        pooled = run(*args, **kwargs)
        positions = math.prod(value.shape[-axes:])
        return pooled * (1 + self._gamma(positions, self._dtype))

    def _layer(self, module: nn.Module, value: Tensor) -> Tensor:
        weight = module.get_parameter("weight")
        self._dtype = weight.dtype
        fan_in = math.prod(weight.shape[1:])
        tiny = (
            0.0
            if self.rewrites is None
            else torch.finfo(weight.dtype).smallest_normal * (torch.finfo(weight.dtype).eps)
        )
        absolute = {
            name: parameter.detach().double().abs() + tiny
            for name, parameter in module.named_parameters(recurse=False)
        }
        result: Tensor = functional_call(module, absolute, value)
        return result * (1 + self._gamma(fan_in, weight.dtype)) + (fan_in + 2) * tiny

    def _batchnorm(self, module: Any, value: Tensor) -> Tensor:
        if module.running_mean is None:
            raise UnsupportedModel("no rounding bound is known for BatchNorm without running stats")
        absolute = {
            name: parameter.detach().double().abs()
            for name, parameter in module.named_parameters(recurse=False)
        }
        absolute["running_mean"] = -module.running_mean.double().abs()
        absolute["running_var"] = module.running_var.double()
        result: Tensor = functional_call(module, absolute, value)
        return result * (1 + self._gamma(8, module.running_mean.dtype))

    _dtype = torch.float64

    def _u(self, value: Tensor) -> float:
        return 0.0 if self.rewrites is None else torch.finfo(self._dtype).eps / 2

    def _gamma(self, terms: int, dtype: torch.dtype) -> float:
        if self.rewrites is None:
            return 0.0
        u = torch.finfo(dtype).eps / 2
        accumulated = (terms + 2) * min(u, torch.finfo(torch.float32).eps / 2)
        return accumulated / (1 - accumulated) + (4 * self.rewrites + 2) * u


@contextlib.contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    """Eval mode inside, each module's own mode restored after."""
    modes = {module: module.training for module in model.modules()}
    try:
        model.eval()
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode
