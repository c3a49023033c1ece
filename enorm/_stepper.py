"""ENorm inside a training loop: a few cycles after every optimiser step."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from functools import partial
from typing import Any, get_args

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from enorm._apply import following, parameters, targets_of, write_
from enorm._balance import check_count, check_exponents
from enorm._compiled import CompiledCycles, CompiledWrite
from enorm._cycle import PlainCycle
from enorm._followers import Copy, Followers, Optimizers
from enorm._masses import Precision, Workspace
from enorm._plan import BatchNormRule, Plan, check_plan, tensors_of
from enorm._precondition import BiasPreconditioner
from enorm._sharded import check_sharding, is_sharded
from enorm._solve import Factor, Order, Scales, build_problem
from enorm._trace import trace


class ENorm:
    """Rescales a model by cycles of Equi-normalization as it trains.

    One cycle visits the groups in order; with producers' norm ``L_i`` and consumers' norm ``R_i``
    of hidden unit i it multiplies the former and divides the latter by
    ``d_i = sqrt(R_i / (c L_i))`` (Stock et al. 2019, Algorithms 1 and 2).

    Units with a zero norm on a side are left alone, and so are units with a non-finite norm,
    which :attr:`nonfinite` counts. A layer that takes no gradient is rescaled with its neighbours,
    for its function stays; what must not change is named in ``exclude`` of :func:`enorm.trace`.

    Args:
        model: the network.
        optimizer: SGD, Adam, AdamW, NAdam, RAdam, Adamax, RMSprop, Rprop, Adagrad, Adadelta or Muon
            of ``torch.optim``, or one with a rule of its own (:func:`register_state_rule`). State
            linear in gradients goes with ``1/d``, quadratic with
            ``1/d²``: it becomes the state that the same gradients leave on the rescaled network
            (exactly so for eps = 0 and no coupled weight decay). A list where several share the
            parameters, as Muon and AdamW may: gradients, which one of them may not have used yet,
            then go along as well. None carries nothing.
        plan: from :func:`enorm.trace` on this model; None traces.
        p: exponent of the norm, positive; ``math.inf`` equalizes ranges as :func:`balance_` does.
        c: depth factor, positive, or ``c_k`` by the layer's module name.
        cycles: cycles per step.
        every: act on every so many-th call of :meth:`step`.
        order: ``"cyclic"`` is Algorithm 1; ``"jacobi"`` updates all groups from the same weights.
        batchnorm: ``"affine"`` keeps the function; ``"ignore"`` is the published rule.
        precondition_bias: let rescaled biases learn as if they had not been. A bias of a unit
            whose scales have multiplied to ``a`` since construction learns at ``lr / a²`` of its
            original scale, which diverges in deep networks with c > 1. With True, ``a²``
            multiplies its gradient while the optimizer steps, and its momentum goes with ``d``.
            For ``torch.optim.SGD``.
        copies: models, or tensors by name, that average this one's parameters, such as an EMA or
            an ``AveragedModel``; they are rescaled alike at every step.
        compile: let ``torch.compile`` turn the cycles and the writing of the weights into few
            kernels, C++ on a CPU (which takes a compiler there) and Triton on a GPU. The first
            step then takes seconds, the others less time. Needs a finite p, weights that are not
            sharded, factors c_k of one group within 2^40 of each other after they are raised to
            p, and on a GPU p ≤ 2 and weights of at most 32 bits.

    Attributes:
        plan: the plan under the BatchNorm rule in use.
        nonfinite: 0-d int64 tensor on the model's device: units left alone so far because of a
            non-finite norm, counted once per cycle. Reading it may synchronise; stepping does not.
        log2_scales: ``log2 d`` that the last step applied, one ``(size,)`` float64 tensor per
            group of the plan; empty before the first.

    Raises:
        ValueError: an argument is out of its range, the plan has no groups or belongs to another
            model, or ``precondition_bias`` has no optimizer.
        RuntimeError: ``precondition_bias`` where another ENorm that rescales one of the parameters
            is attached to the optimizer.
        TypeError: the optimizer's state is of an unknown kind, or ``precondition_bias`` is asked
            for with another optimizer than SGD.
        UnsupportedModel: the model cannot be traced.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizers | None = None,
        *,
        plan: Plan | None = None,
        p: float = 2.0,
        c: Factor = 1.0,
        cycles: int = 1,
        every: int = 1,
        order: Order = "cyclic",
        batchnorm: BatchNormRule = "affine",
        precondition_bias: bool = False,
        copies: Sequence[Copy] = (),
        compile: bool = False,
    ) -> None:
        for name, value in (("cycles", cycles), ("every", every)):
            check_count(name, value)
        if order not in ("cyclic", "jacobi"):
            raise ValueError(f"order must be 'cyclic' or 'jacobi', got {order!r}")
        self._followers = Followers(optimizer, copies)
        self.plan = (trace(model) if plan is None else check_plan(plan)).under(batchnorm)
        check_exponents(self.plan, p, c)
        self._tensors = tensors_of(model, self.plan)
        self.plan.require_groups()
        rescaled = [self._tensors[name] for name in self.plan.parameter_names()]
        self._followers.check(rescaled)
        self._followers.gradients = not self._followers.step_at_once(rescaled)
        check_sharding(self.plan, self._tensors)
        if precondition_bias and any(is_sharded(one) for one in self._tensors.values()):
            raise ValueError("precondition_bias needs whole parameters, and these are sharded")
        self._model = model
        # Who holds each parameter, and the modules inside each module, as they are now.
        self._holders = [
            (name, model.get_submodule(path)._parameters, leaf, tensor, tensor.dtype)
            for name in self.plan.parameter_names()
            for (path, _, leaf), tensor in [(name.rpartition("."), self._tensors[name])]
        ]
        self._children = [
            (module, tuple(module._modules.values()))
            for module in model.modules()
            if module._modules
        ]
        self._problem = build_problem(self.plan, p, c)
        self._cycles, self._every, self._order = cycles, every, order
        self._calls = 0
        self.log2_scales: tuple[Tensor, ...] = ()
        self._targets = targets_of(self.plan)
        self._workspace = Workspace()
        self._precision: Precision | None = None
        self._hook: RemovableHandle | None = None
        self._preconditioner: BiasPreconditioner | None = None
        first = next(self.plan.parameter_names())
        self.nonfinite = torch.zeros((), dtype=torch.int64, device=self._tensors[first].device)
        self._widest = max(
            self._tensors[term.weight].element_size() for term in self._problem.terms
        )
        # A range check would synchronise any other device.
        self._checked = self.nonfinite.device.type == "cpu"
        self._compile = compile
        self._build()
        if precondition_bias:
            # Last, for it works as soon as it is made; beside another gradients would go twice.
            self._check_alone()
            sizes = [group.size for group in self.plan.groups]
            self._preconditioner = BiasPreconditioner(
                self._problem.biases, self._tensors, sizes, self._followers.optimizers
            )

    def _build(self) -> None:
        """What works on the tensors, anew for a copy of this object."""
        self._write = CompiledWrite() if self._compile else partial(write_, quick=True)
        self._fast = self._compiled_cycles() if self._compile else self._plain_cycle()

    def _plain_cycle(self) -> PlainCycle | None:
        problem, tensors = self._problem, self._tensors
        if not self._checked or not PlainCycle.fits(
            problem, tensors, cycles=self._cycles, order=self._order
        ):
            return None
        return PlainCycle(problem, self._targets, tensors)

    def __getstate__(self) -> dict[str, Any]:
        # Compiled code and hooks belong to this object and its optimizer.
        state = {key: value for key, value in self.__dict__.items() if key not in _BUILT}
        return {**state, "_hook": self._is_attached()}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, _hook=None)
        self._build()
        if state["_hook"]:
            self.attach()

    def _compiled_cycles(self) -> CompiledCycles:
        p = self._problem.p
        if p == math.inf:
            raise ValueError("compile=True needs a finite p: use compile=False with p = infinity")
        if any(is_sharded(one) for one in self._tensors.values()):
            raise ValueError("compile=True needs whole parameters, and these are sharded")
        if not self._checked and precisions(self._widest, p, checked=False) != ["float64"]:
            raise ValueError(
                "compile=True on a GPU needs p of at most 2 and weights of at most 32 bits, whose "
                "powers float64 can hold: use compile=False"
            )
        return CompiledCycles(
            self._problem,
            self._targets,
            self._tensors,
            torch.float32 if self._checked and self._widest <= 4 else torch.float64,
            cycles=self._cycles,
            order=self._order,
            counter=None if self._checked else self.nonfinite,
        )

    @torch.no_grad()
    def step(self) -> None:
        """Apply the cycles; call it after ``optimizer.step()``.

        Raises:
            RuntimeError: a parameter or module of the model is no longer the one it was.
        """
        self._check_model()
        if (self._calls + 1) % self._every == 0:
            # A step inside an autocast region would sum some products in half precision.
            with torch.autocast(self.nonfinite.device.type, enabled=False):
                self._step()
        # Not where it raised.
        self._calls += 1

    def _step(self) -> None:
        preconditioner = self._preconditioner
        # Looked up first: what is unknown is found before anything has changed.
        following_ = following(
            self._targets,
            self._tensors,
            self._followers,
            () if preconditioner is None else preconditioner.names,
        )
        # The fast way writes parameters as it goes, up to the first group that it cannot do.
        done = [] if self._fast is None else self._fast()
        rest = self._solve(len(done)) if len(done) < len(self.plan.groups) else []
        z = [*done, *rest]
        self.log2_scales = tuple(z)
        jobs = parameters(self._targets, self._tensors) if rest else []
        if done and rest:
            write_(jobs, [*(torch.zeros_like(one) for one in done), *rest])
            jobs = []
        if jobs or following_:
            self._write([*jobs, *following_], z)
        if preconditioner is not None:
            preconditioner.advance(z)

    def _check_model(self) -> None:
        for module, children in self._children:
            if tuple(module._modules.values()) != children:
                raise RuntimeError(
                    f"a module inside {type(module).__name__} was replaced after this ENorm was "
                    "built, and its plan may no longer hold: build it again"
                )
        for name, held, leaf, tensor, dtype in self._holders:
            if held.get(leaf) is not tensor:
                raise RuntimeError(
                    f"parameter {name!r} was replaced after this ENorm was built: build it again, "
                    "after every change of the model's parameters"
                )
            if tensor.dtype is not dtype:
                raise RuntimeError(
                    f"parameter {name!r} was {dtype} when this ENorm was built and is "
                    f"{tensor.dtype} now: build it again"
                )
        if tensor.device != self.nonfinite.device:
            raise RuntimeError(
                f"the model was on {self.nonfinite.device} when this ENorm was built and is on "
                f"{tensor.device} now: build it again"
            )

    def attach(self) -> RemovableHandle:
        """Run :meth:`step` after every step of the optimizer, or of the last, from now on.

        Returns:
            A handle whose ``remove()`` ends it.

        Raises:
            ValueError: there is no optimizer.
            RuntimeError: it is attached already, or another ENorm is that rescales one of the same
                parameters, as after a notebook's cell has run twice.
        """
        if not self._followers.optimizers:
            raise ValueError("attach needs the optimizer: ENorm(model, optimizer).attach()")
        if self._is_attached():
            raise RuntimeError("this ENorm is attached to its optimizer already")
        self._check_alone()
        # Code that compiles the optimizer's step would compile this one anew for each of its ways.
        self._plain_step = torch.compiler.disable(self.step)
        self._hook = self._followers.optimizers[-1].register_step_post_hook(self._after_step)
        return self._hook

    def _check_alone(self) -> None:
        for optimizer in self._followers.optimizers:
            for hook in optimizer._optimizer_step_post_hooks.values():
                other = getattr(hook, "__self__", None)
                theirs = other._rescaled() if isinstance(other, ENorm) else {}
                shared = [name for one, name in self._rescaled().items() if one in theirs]
                if shared:
                    raise RuntimeError(
                        f"parameter {shared[0]!r} is rescaled by another ENorm attached to this "
                        "optimizer: call remove() on what its attach() returned, or build the "
                        "optimizer anew"
                    )

    def _rescaled(self) -> dict[int, str]:
        """Names of the parameters by identity."""
        return {id(tensor): name for name, _, _, tensor, _ in self._holders}

    def _after_step(self, *_: Any) -> None:
        self._plain_step()

    def _is_attached(self) -> bool:
        if self._hook is None:
            return False
        return self._hook.id in self._followers.optimizers[-1]._optimizer_step_post_hooks

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint needs.

        Calls so far, units left alone, which parameters are scaled, a fingerprint of the plan's
        groups, and with ``precondition_bias`` the product of each unit's scales, as ``log2 a`` per
        group.
        """
        return {
            "calls": self._calls,
            "nonfinite": int(self.nonfinite),
            "precision": self._precision,
            "parameters": list(self.plan.parameter_names()),
            "fingerprint": hashlib.sha256(repr(self.plan.groups).encode()).hexdigest(),
            "log2_a": self._log2_a(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from :meth:`state_dict`.

        Raises:
            ValueError: the state belongs to another model, or is none of an ENorm.
        """
        mine = self.state_dict()
        if not isinstance(state, dict) or state.keys() != mine.keys():
            found = f"keys {list(state)}" if isinstance(state, dict) else type(state).__name__
            raise ValueError(f"this is no state of an ENorm: got {found}")
        counts = (state["calls"], state["nonfinite"])
        if not all(isinstance(one, int) and one >= 0 for one in counts) or (
            state["precision"] not in (None, *get_args(Precision))
        ):
            odd = {key: state[key] for key in ("calls", "nonfinite", "precision")}
            raise ValueError(f"this is no state of an ENorm: got {odd}")
        own, others = list(self.plan.parameter_names()), state["parameters"]
        if others != own:
            one, *_ = sorted(set(own) ^ set(others)) or own
            raise ValueError(
                f"state belongs to an ENorm that scales other parameters (see {one!r}): trace the "
                "same model, or the same submodule, as for that one"
            )
        if state["fingerprint"] != mine["fingerprint"]:
            raise ValueError(
                "state belongs to an ENorm of another model: other units of these parameters share "
                "their scales"
            )
        if (state["log2_a"] is None) != (self._preconditioner is None):
            raise ValueError(
                "state belongs to an ENorm with precondition_bias="
                f"{state['log2_a'] is not None}: build this one alike"
            )
        if self._preconditioner is not None:
            for log2_a, saved in zip(self._preconditioner.log2_a, state["log2_a"], strict=True):
                log2_a.copy_(saved)
        self._calls = state["calls"]
        self._precision = state["precision"]
        self.nonfinite.fill_(state["nonfinite"])

    def _log2_a(self) -> list[Tensor] | None:
        if self._preconditioner is None:
            return None
        return [log2_a.clone() for log2_a in self._preconditioner.log2_a]

    def _solve(self, first: int) -> list[Tensor]:
        """``log2 d`` of the groups from ``first`` on, in the cheapest way that holds the masses."""
        ladder = precisions(self._widest, self._problem.p, checked=self._checked)
        if self._fast is not None and len(ladder) > 1:
            # Float32 has just been tried.
            ladder = [one for one in ladder if one != "float32"]
        if self._precision in ladder:
            ladder = ladder[ladder.index(self._precision) :]
        for precision in ladder:
            scales = Scales(
                self._problem,
                self._tensors,
                precision=precision,
                keep_masses=self._cycles > 1,
                workspace=self._workspace,
            )
            bad = [scales.cycle(order=self._order, first=first)[1] for _ in range(self._cycles)]
            done = precision == ladder[-1] or not scales.lost_range()
            scales.release()
            if done:
                break
            self._precision = ladder[ladder.index(precision) + 1]
        self.nonfinite += torch.stack(bad).sum().to(torch.int64)
        return scales.scales()


_BUILT = frozenset({"_fast", "_plain_step", "_write"})


def precisions(widest: int, p: float, *, checked: bool) -> list[Precision]:
    """Representations of masses to try in turn, cheapest first.

    Args:
        widest: bytes of an entry of the widest weight.
        p: the norm's exponent.
        checked: whether a sum that left its range is noticed; otherwise one representation has to
            hold all finite weights.
    """
    if p == math.inf:
        return ["log"]
    if checked:
        return ["float32", "float64", "log"] if widest <= 4 else ["float64", "log"]
    # Squares of float32 weights and scales stay within float64's range.
    return ["float64"] if widest <= 4 and p <= 2 else ["log"]
