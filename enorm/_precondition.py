"""Biases that learn as if no cycle had ever rescaled them.

A bias of a unit whose scales have multiplied to ``a`` stands at ``b' = a b``, and its gradient
is ``1/a`` of that of ``b``. So a plain step on ``b'`` moves ``b`` with learning rate ``lr / a²``,
which diverges once c > 1 has made ``a`` small. A gradient multiplied by ``a²`` moves ``b'`` by
``a`` times what ``b`` would have moved; weight decay, ``λ b' = a λ b``, is in step already.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, optim
from torch.optim import Optimizer

# All that there are.
_ALIVE: weakref.WeakSet[BiasPreconditioner] = weakref.WeakSet()


def check_unconditioned(tensors: Iterable[Tensor]) -> None:
    """Raise RuntimeError if an ENorm preconditions one of them, which has to learn of scales."""
    tensors = list(tensors)
    if any(one.has(tensors) for one in _ALIVE):
        raise RuntimeError(
            "an ENorm with precondition_bias=True rescales this model, and would not learn of "
            "these scales: balance before building it, or delete it"
        )


class BiasPreconditioner:
    """Multiplies gradients of scaled biases by ``a²`` for the time of each optimizer step.

    Its hooks end with it.

    Args:
        biases: names of the biases of each group.
        tensors: the parameters by name.
        sizes: units of each group.
        optimizers: the one optimizer; its momentum of these biases then goes with ``d``.

    Attributes:
        log2_a: ``log2 a`` per group, shape ``(size,)`` float64, on the biases' device.

    Raises:
        ValueError: there is no optimizer, or more than one.
        TypeError: it is not ``torch.optim.SGD``.
    """

    def __init__(
        self,
        biases: Sequence[Sequence[str]],
        tensors: Mapping[str, Tensor],
        sizes: Sequence[int],
        optimizers: Sequence[Optimizer],
    ) -> None:
        if not optimizers:
            raise ValueError("precondition_bias needs the optimizer: ENorm(model, optimizer, ...)")
        if len(optimizers) > 1:
            raise ValueError(f"precondition_bias takes one optimizer, got {len(optimizers)}")
        (optimizer,) = optimizers
        if type(optimizer) is not optim.SGD:
            raise TypeError(
                f"precondition_bias needs torch.optim.SGD, got {type(optimizer).__name__}: "
                "others do not step in proportion to the gradient"
            )
        device = next(iter(tensors.values())).device
        self.names = frozenset(name for names in biases for name in names)
        self.log2_a = [torch.zeros(size, dtype=torch.float64, device=device) for size in sizes]
        self._biases = [[tensors[name] for name in names] for names in biases]
        self._kept: list[tuple[Tensor, Tensor, int]] = []
        self._optimizer = optimizer
        self._attach()

    def has(self, tensors: Iterable[Tensor]) -> bool:
        """Whether one of them is such a bias."""
        own = {id(bias) for biases in self._biases for bias in biases}
        return any(id(tensor) in own for tensor in tensors)

    def _attach(self) -> None:
        this = weakref.ref(self)

        def before(_optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            preconditioner = this()
            return None if preconditioner is None else preconditioner._before(args, kwargs)

        def after(*_: Any) -> None:
            if (preconditioner := this()) is not None:
                preconditioner._restore()

        for handle in (
            self._optimizer.register_step_pre_hook(before),
            self._optimizer.register_step_post_hook(after),
        ):
            weakref.finalize(self, handle.remove)
        _ALIVE.add(self)

    def __setstate__(self, state: dict[str, Any]) -> None:
        # An optimizer's copy has no hooks.
        self.__dict__.update(state)
        self._attach()

    def advance(self, z: Sequence[Tensor]) -> None:
        """A cycle has multiplied the units of each group by ``2^z``."""
        for log2_a, step in zip(self.log2_a, z, strict=True):
            log2_a += step

    def _before(
        self, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        """What the step is called with; None for what it has been."""
        # The optimizer itself is the first argument.
        optimizer, *rest = args
        closure = rest[0] if rest else kwargs.get("closure")
        if closure is None:
            self._multiply()
            return None

        def preconditioned() -> Any:
            loss = closure()
            self._multiply()
            return loss

        return (optimizer, preconditioned), {k: v for k, v in kwargs.items() if k != "closure"}

    @torch.no_grad()
    def _multiply(self) -> None:
        # A step that was given up left them multiplied, unless somebody has written them since.
        self._kept = [one for one in self._kept if one[0]._version == one[2]]
        self._restore()
        for gradient, log2_a in self._gradients():
            kept = gradient.clone()
            a = log2_a.exp2()
            # One a after the other: a² alone may leave float64's range, and 0 · ∞ is NaN.
            gradient.copy_(gradient.double() * a * a)
            self._kept.append((gradient, kept, gradient._version))

    @torch.no_grad()
    def _restore(self) -> None:
        for gradient, kept, _ in self._kept:
            gradient.copy_(kept)
        self._kept = []

    def _gradients(self) -> Iterator[tuple[Tensor, Tensor]]:
        for biases, log2_a in zip(self._biases, self.log2_a, strict=True):
            for bias in biases:
                if bias.grad is not None:
                    yield bias.grad, log2_a
