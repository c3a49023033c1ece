"""ENorm as a callback of Lightning's ``Trainer``: ``pip install -e ".[lightning]"``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer, callbacks
from torch import nn
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from enorm._plan import Plan
from enorm._stepper import ENorm
from enorm._trace import trace

# Not every version has both.
_AVERAGING = tuple(
    getattr(callbacks, name)
    for name in ("StochasticWeightAveraging", "WeightAveraging")
    if hasattr(callbacks, name)
)


class ENormCallback(Callback):
    """Cycles of :class:`enorm.ENorm` after every optimizer step of ``Trainer.fit``.

    A step that mixed precision skips is none, but for ``fused=True``. Checkpoints carry the state
    along, and so does a second fit of the same model; with another model ENorm starts anew.

    Args:
        module: the dotted name of the submodule to rescale, such as ``"model"``; ``""`` for the
            ``LightningModule`` itself, whose ``forward`` is traced then.
        options: of :class:`enorm.ENorm`: ``plan``, ``p``, ``c``, ``cycles`` and the others.

    Attributes:
        enorm: the :class:`enorm.ENorm` at work; None before the first fit.

    Raises (when a fit begins):
        AttributeError: there is no such submodule.
        ValueError, TypeError, UnsupportedModel: as :class:`enorm.ENorm` does; or another callback
            averages weights, whose scales would differ.

    Source: Stock et al. 2019, Algorithm 2.
    """

    def __init__(self, module: str = "", **options: Any) -> None:
        super().__init__()
        self._module = module
        self._options = options
        self._handle: RemovableHandle | None = None
        self._loaded: dict[str, Any] = {}
        # Whose state that is; None for the one that is fitted next.
        self._owner: nn.Module | None = None
        self.enorm: ENorm | None = None

    @property
    def state_key(self) -> str:
        """Where checkpoints keep the state: several callbacks have a module each."""
        name = type(self).__qualname__
        return f"{name}[{self._module}]" if self._module else name

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Trace the model and attach to its optimizer."""
        # Set by one of its parts, which its type does not tell.
        others = trainer.callbacks  # type: ignore[attr-defined]
        if averaging := [one for one in others if isinstance(one, _AVERAGING)]:
            raise ValueError(
                f"{type(averaging[0]).__name__} averages weights of different scales: take its "
                "callback away, keep a torch.optim.swa_utils.AveragedModel of your own, and pass "
                "copies=[it.module] to ENormCallback"
            )
        model = pl_module.get_submodule(self._module)
        options = dict(self._options)
        plan = options.pop("plan", None)
        plan = trace(model) if plan is None else plan
        optimizers = _optimizers_of(trainer.optimizers, model, plan)
        self.enorm = ENorm(model, optimizers, plan=plan, **options)
        if self._loaded and self._owner in (None, model):
            self.enorm.load_state_dict(self._loaded)
        self._owner = model
        self._handle = self.enorm.attach()

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Detach."""
        self._detach()

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        """Detach."""
        self._detach()

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint needs; empty before the first fit."""
        return self._loaded if self.enorm is None else self.enorm.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue from a checkpoint: at once, or when the fit begins."""
        self._loaded, self._owner = state_dict, None
        if self._handle is not None and self.enorm is not None:
            self.enorm.load_state_dict(state_dict)

    def _detach(self) -> None:
        if self._handle is not None:
            self._handle.remove()
            self._handle = None
            self._loaded = self.state_dict()


def _optimizers_of(
    optimizers: Sequence[Optimizer], model: nn.Module, plan: Plan
) -> Sequence[Optimizer]:
    """Those that have parameters of ``plan``; all where none has."""
    parameters = dict(model.named_parameters(remove_duplicate=False))
    needed = {id(parameters[name]) for name in plan.parameter_names()}
    owners = [
        optimizer
        for optimizer in optimizers
        if needed & {id(one) for group in optimizer.param_groups for one in group["params"]}
    ]
    # ENorm says what is wrong with optimizers that have none.
    return owners or optimizers
