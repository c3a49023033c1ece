"""What goes along when a parameter is rescaled: optimiser state, gradients, averaged copies."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn, optim
from torch.optim import Optimizer
from torch.utils._pytree import tree_leaves

from enorm._memory import overlaps_itself
from enorm._plan import Plan
from enorm._sharded import local

Copy = nn.Module | Mapping[str, Tensor]
# One, or several that each have some of the parameters.
Optimizers = Optimizer | Sequence[Optimizer]

_MOMENTS = {"exp_avg": -1, "exp_avg_sq": -2}

# With W' = d W the gradient with respect to W' is 1/d of that with respect to W. Powers of d by
# optimiser and buffer: −1 where it is linear in gradients, −2 where quadratic, 0 where it does not
# depend on d, as RMSprop's momentum of normalised gradients.
_STATE_POWERS: dict[type[Optimizer], Mapping[str, int]] = {
    optim.SGD: {"momentum_buffer": -1},
    optim.Adam: {**_MOMENTS, "max_exp_avg_sq": -2},
    optim.AdamW: {**_MOMENTS, "max_exp_avg_sq": -2},
    optim.NAdam: _MOMENTS,
    optim.RAdam: _MOMENTS,
    optim.Adamax: {"exp_avg": -1, "exp_inf": -1},
    optim.RMSprop: {"square_avg": -2, "grad_avg": -1, "momentum_buffer": 0},
    optim.Rprop: {"prev": -1, "step_size": 0},
    optim.Adagrad: {"sum": -2},
    optim.Adadelta: {"square_avg": -2, "acc_delta": 0},
}
if hasattr(optim, "Muon"):  # torch 2.9 brought it
    _STATE_POWERS[optim.Muon] = {"momentum_buffer": -1}


def register_state_rule(kind: type[Optimizer], powers: Mapping[str, int]) -> None:
    """Say how the state of an optimizer goes with the scales.

    A parameter that is multiplied by ``d`` has gradients multiplied by ``1/d`` from then on. Its
    buffers are multiplied by ``d`` to the power given here, so that they become what the same
    gradients would have left on the rescaled network: −1 for what is linear in gradients, −2 for
    what is quadratic, 0 for what is of degree 0, 1 for what averages parameters. Lion, for
    instance: ``{"exp_avg": -1}``.

    Args:
        kind: the class; its subclasses need rules of their own.
        powers: by the buffer's key in ``optimizer.state[parameter]``, for all buffers that are more
            than one number. They have to be of the parameter's shape unless their power is 0.

    Raises:
        TypeError: ``kind`` is no class of optimizers, ``powers`` no dict, or a power is no
            whole number.
    """
    if not (isinstance(kind, type) and issubclass(kind, Optimizer)):
        raise TypeError(f"kind must be a subclass of torch.optim.Optimizer, got {kind!r}")
    if not isinstance(powers, Mapping):
        raise TypeError(f"powers must be a dict by the buffers' keys, got {powers!r}")
    for key, power in powers.items():
        if not isinstance(power, int):
            raise TypeError(f"power of {key!r} must be a whole number, got {power!r}")
    _STATE_POWERS[kind] = dict(powers)


class Followers:
    """Tensors that go with a parameter, each with its power of ``d``.

    Args:
        optimizer: its state, or that of several; None for none.
        copies: models, or tensors by name, that hold an average of the parameters, such as an EMA
            or an ``AveragedModel``: they are rescaled as the parameters are.
        gradients: whether ``.grad`` goes along, as that of the rescaled parameter.

    Raises:
        TypeError: the optimizer's state is of an unknown kind, or a copy is something else.
        ValueError: an optimizer is listed twice.
    """

    def __init__(
        self,
        optimizer: Optimizers | None = None,
        copies: Sequence[Copy] = (),
        *,
        gradients: bool = False,
    ) -> None:
        self.optimizers = _listed(optimizer)
        for one in self.optimizers:
            _check_optimizer(one)
        if len({id(one) for one in self.optimizers}) < len(self.optimizers):
            raise ValueError("an optimizer is listed twice: its state would be rescaled twice")
        if isinstance(copies, (nn.Module, Mapping)):
            raise TypeError("copies must be a list of models, got one: write copies=[...]")
        if not isinstance(copies, Iterable):
            raise TypeError(f"copies must be a list of models, got {type(copies).__name__}")
        self._copies = [_tensors_of(copy) for copy in copies]
        self.gradients = gradients

    def of(
        self, name: str, parameter: Tensor, *, preconditioned: bool = False
    ) -> Iterator[tuple[Tensor, int]]:
        """What follows this parameter; absent buffers are left out.

        Args:
            name: by which copies have it.
            parameter: as the optimizers have it.
            preconditioned: whether they see gradients that grow with ``d``: state then goes with
                the opposite power.

        Raises:
            TypeError: a buffer for which there is no rule.
            ValueError: a buffer of another shape, or that is no tensor; a copy that lacks the
                parameter, or is the model itself.
        """
        for optimizer in self.optimizers:
            if parameter not in optimizer.state:
                continue
            powers = _STATE_POWERS[type(optimizer)]
            for key, buffer in optimizer.state[parameter].items():
                kind = type(optimizer).__name__
                if key in powers:
                    # SGD without momentum keeps None.
                    if buffer is None or not powers[key]:
                        continue
                    if not isinstance(buffer, Tensor) or buffer.shape != parameter.shape:
                        form = (
                            f"has shape {tuple(buffer.shape)}"
                            if isinstance(buffer, Tensor)
                            else f"is a {type(buffer).__name__}"
                        )
                        raise ValueError(
                            f"state {key!r} of {kind} for parameter {name!r} {form}, not one "
                            f"tensor of shape {tuple(parameter.shape)}, and cannot go with its "
                            "scales: use an optimizer without such state"
                        )
                    yield buffer, -powers[key] if preconditioned else powers[key]
                elif any(
                    one.shape == parameter.shape or one.numel() > 1 for one in _tensors_in(buffer)
                ):
                    raise TypeError(
                        f"state {key!r} of {kind} for parameter {name!r} is unknown to enorm: say "
                        f"how it goes with the scales by enorm.register_state_rule({kind}, ...)"
                    )
        if self.gradients and parameter.grad is not None:
            if overlaps_itself(local(parameter.grad)):
                # As `sum().backward()` leaves it: one number for all entries.
                parameter.grad = parameter.grad.clone(memory_format=torch.contiguous_format)
            yield parameter.grad, -1
        seen = {local(parameter).data_ptr()}
        for copy in self._copies:
            found = copy.get(name)
            # AveragedModel, among others, puts the model one level down.
            found = copy.get(f"module.{name}") if found is None else found
            if found is None or found.shape != parameter.shape:
                there = ", ".join(map(repr, list(copy)[:3])) or "none"
                raise ValueError(
                    f"a copy has no parameter {name!r} of the model's shape, but {there}: pass the "
                    "model inside it whose parameters have the names of this one's"
                )
            address = local(found).data_ptr()
            if address in seen:
                raise ValueError(
                    f"a copy shares the memory of parameter {name!r} with the model or with "
                    "another copy: pass each only once"
                )
            seen.add(address)
            yield found, 1

    def check(self, tensors: Collection[Tensor]) -> None:
        """Raise ValueError if the optimizers are another model's."""
        known = self._known()
        if self.optimizers and not any(id(tensor) in known for tensor in tensors):
            raise ValueError(
                "the optimizer has none of the parameters that are rescaled: pass the one that "
                "trains this model"
            )

    def step_at_once(self, tensors: Collection[Tensor]) -> bool:
        """Whether one optimizer has all that learns: behind its step no gradient is to be used.

        Without any nobody is known to use them.
        """
        if len(self.optimizers) != 1:
            return not self.optimizers
        known = self._known()
        return all(id(tensor) in known for tensor in tensors if tensor.requires_grad)

    def _known(self) -> set[int]:
        """What the optimizers have, by identity."""
        groups = [group for optimizer in self.optimizers for group in optimizer.param_groups]
        return {id(parameter) for group in groups for parameter in group["params"]}


def _listed(optimizer: Any) -> list[Any]:
    if optimizer is None:
        return []
    return list(optimizer) if isinstance(optimizer, (list, tuple)) else [optimizer]


def _check_optimizer(optimizer: Any) -> None:
    if not isinstance(optimizer, Optimizer):
        raise TypeError(
            f"optimizer must be a torch.optim.Optimizer, got {type(optimizer).__name__}"
            + ("; a plan is given as plan=..." if isinstance(optimizer, Plan) else "")
        )
    if isinstance(inner := getattr(optimizer, "optimizer", None), Optimizer):
        raise TypeError(
            f"optimizer is {type(optimizer).__name__}, which wraps {type(inner).__name__}: pass "
            "optimizer.optimizer"
        )
    if type(optimizer) not in _STATE_POWERS:
        known = ", ".join(kind.__name__ for kind in _STATE_POWERS)
        name = type(optimizer).__name__
        raise TypeError(
            f"optimizer is {name}, whose state enorm cannot carry along: use {known}, say how it "
            f"goes by enorm.register_state_rule({name}, ...), or pass no optimizer if none has run "
            "yet"
        )


def _tensors_of(copy: Any) -> Mapping[str, Tensor]:
    if isinstance(copy, nn.Module):
        return _Parameters(copy)
    if isinstance(copy, Mapping) and all(isinstance(one, Tensor) for one in copy.values()):
        return copy
    raise TypeError(f"a copy must be a model or tensors by name, got {type(copy).__name__}")


def _tensors_in(buffer: Any) -> Sequence[Tensor]:
    # Nearly always it is one, such as the number of steps.
    leaves = [buffer] if isinstance(buffer, Tensor) else tree_leaves(buffer)
    return [one for one in leaves if isinstance(one, Tensor)]


class _Parameters(Mapping[str, Tensor]):
    """A model's parameters by name, as they are when they are looked up."""

    def __init__(self, model: nn.Module) -> None:
        self._model = model

    def __getitem__(self, name: str) -> Tensor:
        try:
            return self._model.get_parameter(name)
        except AttributeError:
            raise KeyError(name) from None

    def __iter__(self) -> Iterator[str]:
        return (name for name, _ in self._model.named_parameters(remove_duplicate=False))

    def __len__(self) -> int:
        return sum(1 for _ in self)
